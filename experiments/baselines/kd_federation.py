"""KD's federated half: silos fine-tune the student, and the centre mixes in each report on arrival."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...base.progress import Progress
from .checkpoints import load_checkpoint, save_checkpoint
from .clips import Bytes, ClipSet, Rows
from .fedasync import Arrival, mix, mixing_share, versions_needed
from .kd_settings import FederatedSettings
from .training import TrainingHistory, batches, stream

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Model = Mapping[str, "Tensor"]


@dataclass(frozen=True, eq=False)
class Federation:
    """A student, the silos' clips and the order in which they report."""

    net: nn.Module  # the centre's model at the start, and its last one at the end
    to_input: Callable[[Bytes], Tensor]
    test: Callable[[], float]
    clips: ClipSet
    silos: Sequence[Rows]
    arrivals: Sequence[Arrival]
    settings: FederatedSettings
    seed: tuple[int, ...]
    file: Path
    device: torch.device


def fine_tune(federation: Federation, progress: Progress) -> TrainingHistory:
    """Process every report in order. ``TrainingHistory.epochs`` counts reports; a point of the curves is a round.

    A round is as many reports as there are silos. A silo's training depends on its initial model and its own
    clips alone, so it is computed when the silo reports. ``progress`` advances by one per clip; the checkpoint
    is written after every round and read first.
    """
    settings = federation.settings
    models, history = _resume(federation)
    progress.advance(sum(_clips_trained(federation, one) for one in federation.arrivals[: history.epochs]))
    correct = trained_on = 0
    for done in range(history.epochs, len(federation.arrivals)):
        arrival = federation.arrivals[done]
        started = time.monotonic()
        federation.net.load_state_dict(models[arrival.base])
        correct += fine_tune_silo(federation, arrival.silo, done, progress)
        trained_on += _clips_trained(federation, arrival)
        share = mixing_share(settings.mixing, arrival.staleness(done), settings.staleness_power)
        models[done + 1] = mix(models[done], federation.net.state_dict(), share)
        needed = versions_needed(federation.arrivals, done + 1)
        models = {version: model for version, model in models.items() if version in needed}
        history.seconds += time.monotonic() - started
        history.epochs = done + 1
        if history.epochs % settings.silos == 0:
            federation.net.load_state_dict(models[done + 1])
            history.train_curve.append(correct / trained_on)
            history.test_curve.append(federation.test())
            correct = trained_on = 0
            tensors = {f"{version}/{name}": t for version, model in models.items() for name, t in model.items()}
            save_checkpoint(federation.file, tensors, vars(history))
    federation.net.load_state_dict(models[history.epochs])
    return history


def fine_tune_silo(federation: Federation, silo: int, report: int, progress: Progress) -> int:
    """Train ``federation.net`` on that silo: SGD with momentum on cross-entropy + (mu / 2) ‖w - w_t‖².

    Returns the number of correct predictions while training, over all its epochs.
    """
    import torch
    import torch.nn.functional as F

    settings, net = federation.settings, federation.net
    trained = list(net.parameters())
    initial = [parameter.detach().clone() for parameter in trained]
    optimiser = torch.optim.SGD(trained, lr=settings.learning_rate, momentum=0.9, weight_decay=settings.weight_decay)
    net.train()
    correct = 0
    for epoch in range(settings.epochs):
        random = stream(*federation.seed, report, epoch)
        for rows in batches(federation.silos[silo], settings.batch_size, random):
            optimiser.zero_grad(set_to_none=True)
            truth = torch.from_numpy(federation.clips.y[rows]).to(federation.device)
            logits = net(federation.to_input(federation.clips.take(rows, random)))
            F.cross_entropy(logits, truth).backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for parameter, start in zip(trained, initial, strict=True):
                    if parameter.grad is not None:
                        parameter.grad.add_(parameter - start, alpha=settings.proximal)
            optimiser.step()
            correct += int((logits.argmax(1) == truth).sum())
            progress.advance(len(rows))
    return correct


def _clips_trained(federation: Federation, arrival: Arrival) -> int:
    """Clips that the report's silo trains on, counted once per epoch."""
    return federation.settings.epochs * len(federation.silos[arrival.silo])


def _resume(federation: Federation) -> tuple[dict[int, Model], TrainingHistory]:
    found = load_checkpoint(federation.file)
    if found is None:
        return {0: _copy(federation.net.state_dict())}, TrainingHistory()
    tensors, record = found
    models: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        version, name = key.split("/", 1)
        models.setdefault(int(version), {})[name] = tensor.to(federation.device)
    return dict(models), TrainingHistory(**record)


def _copy(model: Model) -> Model:
    return {name: tensor.detach().clone() for name, tensor in model.items()}
