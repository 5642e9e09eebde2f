"""KD, the paper's baseline (Jain et al. 2021): distilled at the centre, fine-tuned in an asynchronous federation.

https://arxiv.org/abs/2107.12147. docs/rivals.md says what is theirs and what is our choice.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...agent.training.holdout import hold_out_groups
from ...base.errors import DataError
from ...base.progress import Progress
from ..paper.external_runs import SET_ASIDE
from ..partition import dirichlet, iid
from .asynchrony import Arrival, schedule_arrivals
from .checkpoints import run_key
from .clips import Bytes, Filmed, FilmPlan, Films, Rows, film, plan_films
from .kd_federation import Federation, fine_tune
from .kd_settings import KdRequest
from .losses import distillation_loss
from .networks import DEVIATION, MEAN, Role, as_input, build_network, count_parameters, replace_classifier
from .result import RivalResult, best_and_last, describe_machine, torch_on, write_result
from .training import Fit, Learned, TrainJob, accuracy, learn

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

ROLES: tuple[Role, ...] = ("teacher", "assistant", "student")


@dataclass(frozen=True)
class KdPlan:
    """Who has which clips, before anything is decoded."""

    clips: FilmPlan  # the silos' and the test's; with the centre's, when those were set aside
    central: FilmPlan | None  # a folder of its own
    centre_rows: tuple[int, ...]  # of the training clips of ``clips``; () with a folder of its own
    silo_rows: tuple[tuple[int, ...], ...]  # of ``clips``

    @property
    def central_clips(self) -> int:
        return len(self.central.train) if self.central else len(self.centre_rows)


def plan_kd(request: KdRequest) -> KdPlan:
    """Find the clips and share them out. Raises DataError, StorageError, UsageError."""
    settings = request.settings
    clips = plan_films(request.videos, test_share=settings.test_share, seed=request.seed)
    rest = np.array(clips.train)
    central, centre_rows = None, np.array([], dtype=np.int64)
    if request.central is not None:
        central = plan_films(request.central, test_share=0.0, seed=request.seed)
    else:
        groups = [clips.videos[row].group for row in rest]
        labels = [clips.videos[row].label for row in rest]
        kept, given = hold_out_groups(groups, settings.central.share, request.seed + 1, labels=labels)
        rest, centre_rows = rest[kept], rest[given]
        if not len(centre_rows):
            raise DataError(
                "no clips can be set aside for the centre: the training clips are all of one group",
                fix="give the centre's own clips with --central DIR",
            )
    labels = [clips.videos[row].label for row in rest]
    federated = settings.federated
    smallest = max(2, len(rest) // (8 * federated.silos))
    if federated.beta is None:
        dealt = iid(len(rest), silos=federated.silos, seed=request.seed, smallest=smallest)
    else:
        dealt = dirichlet(labels, silos=federated.silos, beta=federated.beta, seed=request.seed, smallest=smallest)
    return KdPlan(
        clips, central, tuple(centre_rows.tolist()), tuple(tuple(rest[rows].tolist()) for rows in dealt.silos)
    )


def kd_steps(request: KdRequest) -> int:
    """How far ``run_kd`` advances its progress: clips decoded, and clips trained on in every epoch."""
    plan = plan_kd(request)
    central, federated = request.settings.central, request.settings.federated
    epochs = central.teacher.epochs + central.assistant.epochs + central.student.epochs
    sizes = [len(rows) for rows in plan.silo_rows]
    arrivals = _arrivals(request, sizes)
    decoded = len(plan.clips.videos) + (len(plan.central.videos) if plan.central else 0)
    return decoded + epochs * plan.central_clips + federated.epochs * sum(sizes[one.silo] for one in arrivals)


def run_kd(request: KdRequest, progress: Progress) -> RivalResult:
    """Teacher, assistant, student, federation; writes ``request.out``/kd.json and gives the same.

    Takes up what checkpoints under ``request.out``/checkpoints hold of the same run. ``progress``
    advances by one per clip, ``kd_steps`` in all. Raises DataError, StorageError, UsageError, MissingExtra,
    SettingsError as its parts do.
    """
    plan = plan_kd(request)
    with torch_on(request.device, request.threads) as device:
        progress.describe("decoding the clips")
        filmed = film(plan.clips, request.settings.film, progress)
        centre = _film_centre(request, plan, filmed, progress)
        key = run_key(
            what="kd",
            clips=plan.clips.digest,
            centre=plan.central.digest if plan.central else str(plan.centre_rows),
            film=request.settings.film,
            central=request.settings.central,
            dimensions=request.settings.dimensions,
            **request.inputs(),
        )
        school = Distillation(request, filmed, centre, request.out / "checkpoints" / f"kd-{key}", device)
        learned = {role: school.teach(role, progress) for role in ROLES}
        student = school.nets["student"]
        if centre.films.labels != filmed.films.labels:
            replace_classifier(student, len(filmed.films.labels), seed=request.seed + len(ROLES))
            student.to(device)
        progress.describe("federated fine-tuning")
        tuned = fine_tune(_federation(request, plan, filmed, school, device), progress)
        started = time.monotonic()
        accuracy(student, filmed.films, filmed.test, school.guess(student))
        seconds_test = time.monotonic() - started
        details = {
            "classes": len(plan.clips.labels),
            "split": plan.clips.split,
            "clips": {
                "centre": len(centre.rows),
                "silos": [len(rows) for rows in plan.silo_rows],
                "test": len(filmed.test),
            },
            "centre": str(request.central) if request.central else SET_ASIDE,
            "central": {role: vars(one) for role, one in learned.items()},
            "seconds_federated": tuned.seconds,
            "bytes_per_report": sum(tensor.nbytes for tensor in student.state_dict().values()),
            "failed": list(filmed.failed),
            "machine": describe_machine(device, request.threads),
        }
    seconds_train = tuned.seconds + sum(one.seconds for one in learned.values())
    best, last = best_and_last(tuned.test_curve)
    result = RivalResult(
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
        settings=dataclasses.asdict(request.settings),
        seed=request.seed,
        details=details,
    )
    write_result(result, request.out)
    return result


@dataclass(frozen=True, eq=False)
class _Centre:
    films: Films
    rows: Rows


def _film_centre(request: KdRequest, plan: KdPlan, filmed: Filmed, progress: Progress) -> _Centre:
    if plan.central is None:
        readable = set(filmed.train.tolist())
        rows = np.array([row for row in plan.centre_rows if row in readable], dtype=np.int64)
        return _Centre(filmed.films, rows)
    progress.describe("decoding the centre's clips")
    own = film(plan.central, request.settings.film, progress)
    return _Centre(own.films, own.train)


class Distillation:
    """The three networks of the centre; each is taught by the one before."""

    def __init__(self, request: KdRequest, filmed: Filmed, centre: _Centre, folder: Path, device: torch.device) -> None:
        self.request, self.filmed, self.centre = request, filmed, centre
        self.folder, self.device = folder, device
        self.nets: dict[Role, nn.Module] = {}

    def teach(self, role: Role, progress: Progress) -> Learned:
        """Train that network, or take it from its checkpoint."""
        progress.describe(f"{role} at the centre")
        number = ROLES.index(role)
        request, films = self.request, self.centre.films
        net = build_network(
            role, request.scale, request.settings.dimensions, len(films.labels), seed=request.seed + number
        ).to(self.device)
        master = self.nets[ROLES[number - 1]] if number else None
        same_labels = films.labels == self.filmed.films.labels
        fit: Fit = getattr(request.settings.central, role)
        lesson = TrainJob(
            net=net,
            step=lambda frames, y, _: self._step(net, master, frames, y),
            test=(lambda: self.test(net)) if same_labels else None,
            fit=fit,
            films=films,
            rows=self.centre.rows,
            seed=(request.seed, number),
            file=self.folder / f"{role}.safetensors",
        )
        self.nets[role] = net
        return learn(lesson, progress)

    def test(self, net: nn.Module) -> float:
        """Accuracy on the test clips."""
        return accuracy(net, self.filmed.films, self.filmed.test, self.guess(net))

    def guess(self, net: nn.Module) -> Any:
        return lambda frames: net(self.seen(frames)).argmax(1).cpu().numpy()

    def seen(self, frames: Bytes) -> Tensor:
        return as_input(frames, MEAN, DEVIATION, self.device)

    def _step(self, net: nn.Module, master: nn.Module | None, frames: Bytes, y: Rows) -> tuple[Tensor, int]:
        import torch
        import torch.nn.functional as F

        seen, truth = self.seen(frames), torch.from_numpy(y).to(self.device)
        logits = net(seen)
        right = int((logits.argmax(1) == truth).sum())
        if master is None:
            return F.cross_entropy(logits, truth), right
        with torch.no_grad():
            wisdom = master(seen)
        central = self.request.settings.central
        loss = distillation_loss(logits, wisdom, truth, temperature=central.temperature, alpha=central.alpha)
        return loss, right


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
    request: KdRequest, plan: KdPlan, filmed: Filmed, school: Distillation, device: torch.device
) -> Federation:
    readable = set(filmed.train.tolist())
    silos = [np.array([row for row in rows if row in readable], dtype=np.int64) for rows in plan.silo_rows]
    settings = request.settings.federated
    student = school.nets["student"]
    return Federation(
        net=student,
        seen=school.seen,
        test=lambda: school.test(student),
        films=filmed.films,
        silos=silos,
        arrivals=_arrivals(request, [len(rows) for rows in plan.silo_rows]),
        settings=settings,
        seed=(request.seed, len(ROLES)),
        file=school.folder / f"federated-{run_key(settings=settings)}.safetensors",
        device=device,
    )
