"""``python -m flamest.experiments.baselines``: KD and ActionCLIP, trained on the videos."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.app import App
from ...base.console import command
from ...base.errors import UsageError
from ...base.options import JsonOption, takes_records
from ...base.progress import progress_bar
from .result import BaselineResult, as_record

if TYPE_CHECKING:
    from .clips import ClipShape

app = App("flamest.experiments.baselines", extras=("experiments", "export"), add_completion=False, no_args_is_help=True)

Videos = Annotated[Path, typer.Option("--videos", help="Labelled clips: LABEL/clip.ext, or a labels.csv.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for the result file and the checkpoints.")]
ScaleOption = Annotated[str, typer.Option("--scale", help="small (2 cores, minutes) or full (a GPU, days).")]
Dataset = Annotated[
    str,
    typer.Option("--dataset", help="Name in the result; by default miniworld for its clips, else the folder's name."),
]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Epochs of each of KD's three networks, or of CLIP.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the splits, the initial weights, the order and the crops.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of PyTorch on the CPU.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Frames = Annotated[int | None, typer.Option("--frames", min=1, help="Frames per clip.")]
TestShare = Annotated[
    float | None,
    typer.Option(
        "--test-share",
        min=0.01,
        max=0.99,
        help="Share of the clips held out, by whole groups; as in the tables: 0.75 of the mini-world, else 0.2.",
    ),
]


@dataclass(frozen=True)
class KdOptions:
    """The command line of ``kd``."""

    videos: Videos
    out: Out
    scale: ScaleOption = "small"
    central: Annotated[
        Path | None,
        typer.Option("--central", help="The centre's own labelled clips; by default half of the training groups."),
    ] = None
    student: Annotated[str, typer.Option("--student", help="2d (as in Table 1) or 3d, also for the assistant.")] = "2d"
    epochs: Epochs = None
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="Rounds of as many reports as there are silos.")
    ] = None
    silos: Annotated[int, typer.Option("--silos", min=2, help="Number of silos.")] = 4
    beta: Annotated[float, typer.Option("--beta", min=0.01, help="Dirichlet split over silos: small is uneven.")] = 0.6
    iid: Annotated[bool, typer.Option("--iid", help="Use an IID split instead.")] = False
    frames: Frames = None
    size: Annotated[int | None, typer.Option("--size", min=16, help="Pixels of a frame.")] = None
    test_share: TestShare = None
    dataset: Dataset = ""
    seed: Seed = 0
    threads: Threads = 2
    device: DeviceOption = "auto"


@app.command()
@command
@takes_records
def kd(options: KdOptions, as_json: JsonOption = False) -> dict[str, Any]:
    """Train KD, a federated baseline.

    Jain et al. 2021: teacher, assistant and student at the centre, then an asynchronous federation. Writes OUT/kd.json.
    An interrupted run resumes from OUT/checkpoints when started again.
    """
    from .kd import kd_steps, run_kd
    from .kd_settings import KdRequest, kd_settings

    name = options.dataset or _detected(options.videos)
    settings = kd_settings(_one_of("scale", options.scale, "small", "full"), epochs=options.epochs)  # type: ignore[arg-type]
    shape = _resized(settings.shape, options.frames, options.size)
    federated = dataclasses.replace(
        settings.federated,
        silos=options.silos,
        beta=None if options.iid else options.beta,
        rounds=options.rounds or settings.federated.rounds,
    )
    settings = dataclasses.replace(
        settings,
        shape=shape,
        federated=federated,
        dimensions=_one_of("student", options.student, "2d", "3d"),  # type: ignore[arg-type]
        test_share=options.test_share or default_test_share(name),
    )
    request = KdRequest(
        videos=options.videos,
        out=options.out,
        scale=options.scale,  # type: ignore[arg-type]
        settings=settings,
        central=options.central,
        dataset=name,
        seed=options.seed,
        threads=options.threads,
        device=_one_of("device", options.device, "auto", "cpu", "cuda"),  # type: ignore[arg-type]
    )
    with progress_bar("KD", kd_steps(request), unit="clips") as progress:
        return _report(run_kd(request, progress))


@dataclass(frozen=True)
class ActionClipOptions:
    """The command line of ``actionclip``."""

    videos: Videos
    out: Out
    scale: ScaleOption = "small"
    clip: Annotated[
        str, typer.Option("--clip", help="miniworld, random (both small), or a local folder of a CLIP model.")
    ] = ""
    fusion: Annotated[str, typer.Option("--fusion", help="Fusion of the frames: mean or transformer.")] = "mean"
    epochs: Epochs = None
    frames: Frames = None
    size: Annotated[int | None, typer.Option("--size", min=16, help="Frame size of this CLIP, pixels.")] = None
    test_share: TestShare = None
    dataset: Dataset = ""
    seed: Seed = 0
    threads: Threads = 2
    device: DeviceOption = "auto"


@app.command()
@command
@takes_records
def actionclip(options: ActionClipOptions, as_json: JsonOption = False) -> dict[str, Any]:
    """Train ActionCLIP, a centralised baseline.

    Wang et al. 2021: CLIP fine-tuned on clips and the words of their labels, in one place. Writes OUT/actionclip.json.
    An interrupted run resumes from OUT/checkpoints when started again.
    """
    from .actionclip import ActionClipRequest, actionclip_settings, actionclip_steps, run_actionclip

    name = options.dataset or _detected(options.videos)
    settings = actionclip_settings(_one_of("scale", options.scale, "small", "full"), epochs=options.epochs)  # type: ignore[arg-type]
    shape = _resized(settings.shape, options.frames, options.size)
    settings = dataclasses.replace(
        settings,
        shape=shape,
        fusion=_one_of("fusion", options.fusion, "mean", "transformer"),  # type: ignore[arg-type]
        test_share=options.test_share or default_test_share(name),
    )
    request = ActionClipRequest(
        videos=options.videos,
        out=options.out,
        scale=options.scale,  # type: ignore[arg-type]
        settings=settings,
        clip=options.clip,
        dataset=name,
        seed=options.seed,
        threads=options.threads,
        device=_one_of("device", options.device, "auto", "cpu", "cuda"),  # type: ignore[arg-type]
    )
    with progress_bar("ActionCLIP", actionclip_steps(request), unit="clips") as progress:
        return _report(run_actionclip(request, progress))


def main() -> None:
    app()


def default_test_share(dataset: str) -> float:
    """Share of the clips that the tables hold out of that data set, where they hold out whole groups."""
    from ..miniworld.videos import EXPERIMENT_TEST_SHARE

    return EXPERIMENT_TEST_SHARE if dataset == "miniworld" else 0.2


def _detected(videos: Path) -> str:
    from ..silos import is_miniworld

    return "miniworld" if is_miniworld(videos) else ""


def _report(result: BaselineResult) -> dict[str, Any]:
    print(
        f"{result.name} on {result.dataset} ({result.scale}): best {result.best:.1%}, last {result.last:.1%} of "
        f"held-out clips; {result.trainable_parameters:,} parameters, {result.seconds_train:.0f} s of training, "
        f"{result.seconds_test:.1f} s of testing"
    )
    return as_record(result)


def _resized(shape: ClipShape, frames: int | None, size: int | None) -> ClipShape:
    return dataclasses.replace(shape, frames=frames or shape.frames, size=size or shape.size)


def _one_of(name: str, value: str, *known: str) -> str:
    if value not in known:
        raise UsageError(f"--{name} is '{value}', expected one of: {', '.join(known)}", fix=f"--{name} {known[0]}")
    return value
