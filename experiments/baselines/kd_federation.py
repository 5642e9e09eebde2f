"""KD's federated half: silos fine-tune the student, the centre mixes in whatever arrives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...base.progress import Progress
from .asynchrony import Arrival, mix, mixing_share, versions_needed
from .checkpoints import load_checkpoint, save_checkpoint
from .clips import Bytes, Films, Rows
from .kd_settings import FederatedSettings
from .training import Learned, batches, stream

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Model = Mapping[str, "Tensor"]


@dataclass(frozen=True, eq=False)
class Federation:
    """A student, the silos' clips and the order in which they report."""

    net: nn.Module  # begins as the centre's model, ends as its last
    seen: Callable[[Bytes], Tensor]
    test: Callable[[], float]
    films: Films
    silos: Sequence[Rows]
    arrivals: Sequence[Arrival]
    settings: FederatedSettings
    seed: tuple[int, ...]
    file: Path
    device: torch.device


def fine_tune(federation: Federation, progress: Progress) -> Learned:
    """Take every arrival in turn; ``Learned.epochs`` counts arrivals, the curves rounds of as many as there are silos.

    A silo's training depends on the model that it began with and on its own clips alone, so it is
    computed when the silo reports. ``progress`` advances by one per clip; the checkpoint is written after
    every round and read first.
    """
    settings = federation.settings
    models, learned = _resume(federation)
    progress.advance(sum(_work(federation, one) for one in federation.arrivals[: learned.epochs]))
    right = seen = 0
    for done in range(learned.epochs, len(federation.arrivals)):
        arrival = federation.arrivals[done]
        started = time.monotonic()
        federation.net.load_state_dict(models[arrival.base])
        right += train_silo(federation, arrival.silo, done, progress)
        seen += _work(federation, arrival)
        share = mixing_share(settings.mixing, arrival.staleness(done), settings.staleness_power)
        models[done + 1] = mix(models[done], federation.net.state_dict(), share)
        needed = versions_needed(federation.arrivals, done + 1)
        models = {version: model for version, model in models.items() if version in needed}
        learned.seconds += time.monotonic() - started
        learned.epochs = done + 1
        if learned.epochs % settings.silos == 0:
            federation.net.load_state_dict(models[done + 1])
            learned.train_curve.append(right / seen)
            learned.test_curve.append(federation.test())
            right = seen = 0
            tensors = {f"{version}/{name}": t for version, model in models.items() for name, t in model.items()}
            save_checkpoint(federation.file, tensors, vars(learned))
    federation.net.load_state_dict(models[learned.epochs])
    return learned


def train_silo(federation: Federation, silo: int, turn: int, progress: Progress) -> int:
    """``federation.net`` as that silo trains it: SGD with momentum on cross-entropy + (mu / 2) ‖w - w_t‖².

    Returns how many clips were recognised on the way, over all its epochs.
    """
    import torch
    import torch.nn.functional as F

    settings, net = federation.settings, federation.net
    trained = list(net.parameters())
    begun = [parameter.detach().clone() for parameter in trained]
    optimiser = torch.optim.SGD(trained, lr=settings.learning_rate, momentum=0.9, weight_decay=settings.weight_decay)
    net.train()
    right = 0
    for epoch in range(settings.epochs):
        random = stream(*federation.seed, turn, epoch)
        for rows in batches(federation.silos[silo], settings.batch_size, random):
            optimiser.zero_grad(set_to_none=True)
            truth = torch.from_numpy(federation.films.y[rows]).to(federation.device)
            logits = net(federation.seen(federation.films.take(rows, random)))
            F.cross_entropy(logits, truth).backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for parameter, start in zip(trained, begun, strict=True):
                    if parameter.grad is not None:
                        parameter.grad.add_(parameter - start, alpha=settings.proximal)
            optimiser.step()
            right += int((logits.argmax(1) == truth).sum())
            progress.advance(len(rows))
    return right


def _work(federation: Federation, arrival: Arrival) -> int:
    return federation.settings.epochs * len(federation.silos[arrival.silo])


def _resume(federation: Federation) -> tuple[dict[int, Model], Learned]:
    found = load_checkpoint(federation.file)
    if found is None:
        return {0: _copy(federation.net.state_dict())}, Learned()
    tensors, record = found
    models: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        version, name = key.split("/", 1)
        models.setdefault(int(version), {})[name] = tensor.to(federation.device)
    return dict(models), Learned(**record)


def _copy(model: Model) -> Model:
    return {name: tensor.detach().clone() for name, tensor in model.items()}
