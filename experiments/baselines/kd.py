"""KD, the paper's baseline (Jain et al. 2021): distilled at the centre, fine-tuned in an asynchronous federation.

https://arxiv.org/abs/2107.12147. docs/explanation/baselines.md lists which choices are theirs and which are ours.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...base.errors import DataError
from ...base.progress import Progress
from ..partition import Partition, dirichlet, iid
from ..recordings import silo_units, smallest_share, split_units
from ..silos import held_out
from .checkpoints import run_key
from .clips import Bytes, ClipSet, ClipSplit, DecodedClips, Rows, decode_clips, split_clips
from .fedasync import Arrival, schedule_arrivals
from .kd_federation import Federation, fine_tune
from .kd_settings import FederatedSettings, KdRequest
from .losses import distillation_loss
from .networks import MEAN, STD, Role, as_input, build_network, count_parameters, replace_classifier
from .result import SET_ASIDE, BaselineResult, best_and_last, settings_record, torch_on, training_machine, write_result
from .training import Fit, TrainingHistory, TrainJob, accuracy, train

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

ROLES: tuple[Role, ...] = ("teacher", "assistant", "student")


@dataclass(frozen=True)
class KdSplit:
    """Clips of the centre, the silos and the test, before anything is decoded."""

    clips: ClipSplit  # of the silos and the test, and of the centre when its clips were set aside
    central: ClipSplit | None  # a folder of its own
    centre_rows: tuple[int, ...]  # of the training clips of ``clips``; () with a folder of its own
    silo_rows: tuple[tuple[int, ...], ...]  # of ``clips``

    @property
    def central_clips(self) -> int:
        """Number of clips at the centre."""
        return len(self.central.train) if self.central else len(self.centre_rows)


def split_kd_clips(request: KdRequest) -> KdSplit:
    """Find the clips and split them over centre, silos and test. Raises DataError, StorageError, UsageError."""
    settings = request.settings
    clips = split_clips(request.videos, test_share=settings.test_share, seed=request.seed)
    rest = np.array(clips.train)
    central, centre_rows = None, np.array([], dtype=np.int64)
    if request.central is not None:
        central = split_clips(request.central, test_share=0.0, seed=request.seed)
    else:
        kept, set_aside = held_out([clips.videos[row] for row in rest], settings.central.share, request.seed + 1)
        rest, centre_rows = rest[kept], rest[set_aside]
        if not len(centre_rows):
            raise DataError(
                "no clips can be set aside for the centre: the training clips are all of one group",
                fix="give the centre's own clips with --central DIR",
            )
    partition = _over_silos(clips, rest, settings.federated, request.seed)
    return KdSplit(
        clips, central, tuple(centre_rows.tolist()), tuple(tuple(rest[rows].tolist()) for rows in partition.silos)
    )


def _over_silos(clips: ClipSplit, rest: Rows, federated: FederatedSettings, seed: int) -> Partition:
    """Split rows of ``clips`` over silos, the segments of a recording together."""

    def split(y: Rows) -> Partition:
        smallest = smallest_share(len(y), len(rest), federated.silos)
        if federated.beta is None:
            return iid(len(y), silos=federated.silos, seed=seed, smallest=smallest)
        return dirichlet(y, silos=federated.silos, beta=federated.beta, seed=seed, smallest=smallest)

    videos = [clips.videos[row] for row in rest]
    units = silo_units([video.group for video in videos], [video.extent for video in videos])
    return split_units(units, np.array([clips.labels.index(video.label) for video in videos], dtype=np.int64), split)


def kd_steps(request: KdRequest) -> int:
    """Steps of ``run_kd``'s progress: clips decoded, and clips trained on in every epoch."""
    split = split_kd_clips(request)
    central, federated = request.settings.central, request.settings.federated
    epochs = central.teacher.epochs + central.assistant.epochs + central.student.epochs
    sizes = [len(rows) for rows in split.silo_rows]
    arrivals = _arrivals(request, sizes)
    decoded = len(split.clips.videos) + (len(split.central.videos) if split.central else 0)
    return decoded + epochs * split.central_clips + federated.epochs * sum(sizes[one.silo] for one in arrivals)


def run_kd(request: KdRequest, progress: Progress) -> BaselineResult:
    """Train teacher, assistant, student and federation; writes ``request.out``/kd.json and returns its content.

    Resumes from the checkpoints of the same run under ``request.out``/checkpoints. ``progress`` advances by
    one per clip, ``kd_steps`` in all. Raises DataError, StorageError, UsageError, MissingExtra,
    SettingsError as its parts do.
    """
    split = split_kd_clips(request)
    with torch_on(request.device, request.threads) as device:
        progress.describe("decoding the clips")
        decoded = decode_clips(split.clips, request.settings.shape, progress)
        centre = _decode_centre(request, split, decoded, progress)
        key = run_key(
            what="kd",
            clips=split.clips.digest,
            centre=split.central.digest if split.central else str(split.centre_rows),
            shape=request.settings.shape,
            central=request.settings.central,
            dimensions=request.settings.dimensions,
            **request.inputs(),
        )
        distillation = Distillation(request, decoded, centre, request.out / "checkpoints" / f"kd-{key}", device)
        central = {role: distillation.train(role, progress) for role in ROLES}
        student = distillation.nets["student"]
        if centre.clips.labels != decoded.clips.labels:
            replace_classifier(student, len(decoded.clips.labels), seed=request.seed + len(ROLES))
            student.to(device)
        progress.describe("federated fine-tuning")
        tuned = fine_tune(_federation(request, split, decoded, distillation, device), progress)
        started = time.monotonic()
        accuracy(student, decoded.clips, decoded.test, distillation.predict(student))
        seconds_test = time.monotonic() - started
        details = {
            "classes": len(split.clips.labels),
            "split": split.clips.record,
            "clips": {
                "centre": len(centre.rows),
                "silos": [len(rows) for rows in split.silo_rows],
                "test": len(decoded.test),
            },
            "centre": str(request.central) if request.central else SET_ASIDE,
            "central": {role: vars(one) for role, one in central.items()},
            "seconds_federated": tuned.seconds,
            "bytes_per_report": sum(tensor.nbytes for tensor in student.state_dict().values()),
            "failed": list(decoded.failed),
            "machine": training_machine(device, request.threads),
        }
    seconds_train = tuned.seconds + sum(one.seconds for one in central.values())
    best, last = best_and_last(tuned.test_curve)
    result = BaselineResult(
        name="KD",
        dataset=request.dataset or request.videos.resolve().name,
        scale=request.scale,
        best=best,
        last=last,
        seconds_train=seconds_train,
        seconds_test=seconds_test,
        trainable_parameters=count_parameters(student),
        curve=tuple(tuned.test_curve),
        train_curve=tuple(tuned.train_curve),
        settings=settings_record(request.settings),
        seed=request.seed,
        details=details,
    )
    write_result(result, request.out)
    return result


@dataclass(frozen=True, eq=False)
class _Centre:
    """The centre's clips: rows of a set that may hold others too."""

    clips: ClipSet
    rows: Rows


def _decode_centre(request: KdRequest, split: KdSplit, decoded: DecodedClips, progress: Progress) -> _Centre:
    if split.central is None:
        readable = set(decoded.train.tolist())
        rows = np.array([row for row in split.centre_rows if row in readable], dtype=np.int64)
        return _Centre(decoded.clips, rows)
    progress.describe("decoding the centre's clips")
    own = decode_clips(split.central, request.settings.shape, progress)
    return _Centre(own.clips, own.train)


class Distillation:
    """The three networks of the centre; each is the teacher of the next."""

    def __init__(
        self, request: KdRequest, decoded: DecodedClips, centre: _Centre, folder: Path, device: torch.device
    ) -> None:
        self.request, self.decoded, self.centre = request, decoded, centre
        self.folder, self.device = folder, device
        self.nets: dict[Role, nn.Module] = {}

    def train(self, role: Role, progress: Progress) -> TrainingHistory:
        """Train that network, resuming from its checkpoint."""
        progress.describe(f"{role} at the centre")
        number = ROLES.index(role)
        request, clips = self.request, self.centre.clips
        net = build_network(
            role, request.scale, request.settings.dimensions, len(clips.labels), seed=request.seed + number
        ).to(self.device)
        teacher = self.nets[ROLES[number - 1]] if number else None
        same_labels = clips.labels == self.decoded.clips.labels
        fit: Fit = getattr(request.settings.central, role)
        job = TrainJob(
            net=net,
            step=lambda frames, y, _: self._step(net, teacher, frames, y),
            test=(lambda: self.test(net)) if same_labels else None,
            fit=fit,
            clips=clips,
            rows=self.centre.rows,
            seed=(request.seed, number),
            file=self.folder / f"{role}.safetensors",
        )
        self.nets[role] = net
        return train(job, progress)

    def test(self, net: nn.Module) -> float:
        """Accuracy on the test clips."""
        return accuracy(net, self.decoded.clips, self.decoded.test, self.predict(net))

    def predict(self, net: nn.Module) -> Any:
        """A function from frames to the classes that ``net`` predicts."""
        return lambda frames: net(self.to_input(frames)).argmax(1).cpu().numpy()

    def to_input(self, frames: Bytes) -> Tensor:
        """Frames as the networks' input, on the device."""
        return as_input(frames, MEAN, STD, self.device)

    def _step(self, net: nn.Module, teacher: nn.Module | None, frames: Bytes, y: Rows) -> tuple[Tensor, int]:
        import torch
        import torch.nn.functional as F

        pixels, truth = self.to_input(frames), torch.from_numpy(y).to(self.device)
        logits = net(pixels)
        correct = int((logits.argmax(1) == truth).sum())
        if teacher is None:
            return F.cross_entropy(logits, truth), correct
        with torch.no_grad():
            teacher_logits = teacher(pixels)
        central = self.request.settings.central
        loss = distillation_loss(logits, teacher_logits, truth, temperature=central.temperature, alpha=central.alpha)
        return loss, correct


def _arrivals(request: KdRequest, sizes: list[int]) -> list[Arrival]:
    federated = request.settings.federated
    return schedule_arrivals(
        sizes,
        arrivals=federated.rounds * federated.silos,
        epochs=federated.epochs,
        slowest=federated.slowest,
        seed=request.seed,
    )


def _federation(
    request: KdRequest, split: KdSplit, decoded: DecodedClips, distillation: Distillation, device: torch.device
) -> Federation:
    readable = set(decoded.train.tolist())
    silos = [np.array([row for row in rows if row in readable], dtype=np.int64) for rows in split.silo_rows]
    settings = request.settings.federated
    student = distillation.nets["student"]
    return Federation(
        net=student,
        to_input=distillation.to_input,
        test=lambda: distillation.test(student),
        clips=decoded.clips,
        silos=silos,
        arrivals=_arrivals(request, [len(rows) for rows in split.silo_rows]),
        settings=settings,
        seed=(request.seed, len(ROLES)),
        file=distillation.folder / f"federated-{run_key(settings=settings)}.safetensors",
        device=device,
    )
