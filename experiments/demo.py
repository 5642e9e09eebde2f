"""The demo: the whole system on this machine, from bundle and clips to rounds, comparison and report.

Every part is the real one: FLAMeST's own commands as processes, real video files, gRPC over mutual TLS. Without
clips and bundle, the mini-world's videos and small networks are used (docs/explanation/miniworld.md).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..agent.status import AgentStatus
from ..base.clock import utc_text
from ..base.errors import DataError, StorageError
from ..base.progress import progress_bar
from ..fedproto.head import HeadSpec
from ..fedproto.records import TrainSettings
from ..runtime.bundle.manifest import Manifest
from ..runtime.bundle.manifest_reading import read_manifest
from .demo_evaluation import (
    ReferenceAccuracies,
    TrainingSetup,
    read_store,
    round_accuracies,
    test_table,
    train_references,
)
from .federation import AGENT_HOLD_OUT, FederationSetup, check_rounds_closed, enrol, run_federation
from .metadata import metadata_accuracy
from .miniworld.videos import CLASSES, EXPERIMENT_SEED, render_dataset
from .processes import run_command
from .report.page import ClipPrediction, DemoReport, RoundAccuracy, SiloReport, write_report
from .report.video_frames import keyframe_strip
from .silos import LabelledVideo, Split, labelled_videos, lay_out_videos, split_videos

SCENES = 16  # of the mini-world, with one clip per class: 400 clips
# The paper's batch of 128 and rate of 0.01 are for silos with thousands of clips; the demo's have about eighty.
TRAIN = TrainSettings(batch_size=16, learning_rate=0.0005)
PACKAGES = ("numpy", "onnxruntime", "grpcio", "av", "scikit-learn")

Echo = Callable[[str], None]


@dataclass(frozen=True)
class DemoRequest:
    """Options of ``flamest-demo``."""

    out: Path
    videos: Path | None  # None: render the mini-world
    bundle: Path | None  # None: export the mini-world's networks
    silos: int
    rounds: int
    beta: float  # of the Dirichlet split; small is far from IID
    test_share: float  # of the clips, by whole groups
    seed: int
    threads: int  # per silo


def run_demo(request: DemoRequest, echo: Echo) -> dict[str, Any]:
    """Run the demo and write ``OUT/report.html``; returns the figures. Raises FlamestError."""
    started = time.monotonic()
    _create_output(request.out)
    with ThreadPoolExecutor(1) as background:  # the export is another process, on one core
        exporting = background.submit(_bundle, request, echo)
        videos = _videos(request, echo)
        bundle, exported = exporting.result()
    manifest = read_manifest(bundle)
    split = _split(request, videos, echo)
    extraction = _extract_test(request, bundle, split, echo)
    setup = _setup(request, bundle, manifest, split)
    history = _federate(setup, split, echo)
    measured = _measure(request, setup, split, echo)
    predicted = _predict(request, setup, split, bundle)
    outcome = _Outcome(extraction, history, measured, predicted, time.monotonic() - started)
    report = _report(request, manifest, split, outcome)
    write_report(request.out / "report.html", report)
    return {
        "accuracy": report.last,
        "best_accuracy": report.best.accuracy if report.best else None,
        "chance": report.chance,
        "classes": len(split.labels),
        "rounds": request.rounds,
        "round_accuracy": [entry.accuracy for entry in report.rounds],
        "local_accuracy": report.local_accuracy,
        "local_accuracies": measured.references.local,
        "centralised_accuracy": report.centralised_accuracy,
        "metadata_accuracy": report.metadata_accuracy,
        "test_clips": report.test_clips,
        "train_clips": {silo: len(videos) for silo, videos in split.silos.items()},
        "bytes_per_silo_round": report.bytes_per_silo_round,
        "ms_per_clip": extraction["ms_per_clip"],
        "stages_ms": extraction["stages_ms"],
        "export": exported,
        "prediction": predicted,
        "report": str(request.out / "report.html"),
        "seconds": report.seconds,
    }


@dataclass(frozen=True)
class _Measured:
    rounds: list[float]  # accuracy of each round's model on the test clips, 0 to 1
    references: ReferenceAccuracies
    metadata: float


@dataclass(frozen=True)
class _Outcome:
    extraction: dict[str, Any]  # report of the test clips' extraction
    history: list[dict[str, Any]]  # of the coordinator's rounds
    measured: _Measured
    predicted: dict[str, Any]  # for one held-out clip
    seconds: float  # of the whole demo


def _create_output(out: Path) -> None:
    """Make the output folder. Raises StorageError unless it is new or empty, so that runs are never mixed."""
    if out.exists() and any(out.iterdir()):
        raise StorageError(f"{out} exists and is not empty", fix=f"rm -r {out}, or use another --out")
    out.mkdir(parents=True, exist_ok=True)


def _bundle(request: DemoRequest, echo: Echo) -> tuple[Path, dict[str, Any]]:
    if request.bundle is not None:
        echo(f"1. using the bundle {request.bundle}")
        return request.bundle, {}
    echo("1. exporting the mini-world's small networks (flamest-export --backend onnx --weights miniworld)")
    out = request.out / "bundle"
    exported = run_command("export", "--backend", "onnx", "--weights", "miniworld", "--out", out)
    echo(f"   parity with PyTorch verified, captions equal: {exported['captions_equal']}, {exported['seconds']:.0f} s")
    return out, exported


def _videos(request: DemoRequest, echo: Echo) -> tuple[LabelledVideo, ...]:
    folder = request.videos
    if folder is None:
        folder = request.out / "clips"
        total = len(CLASSES) * SCENES
        echo(f"2. rendering {total} clips of the mini-world: {SCENES} scenes, {len(CLASSES)} classes")
        with progress_bar("rendering", total, unit="clips") as progress:
            render_dataset(folder, groups=SCENES, seed=EXPERIMENT_SEED + request.seed, progress=progress)
    else:
        echo(f"2. using the clips of {folder}")
    return labelled_videos(folder)


def _split(request: DemoRequest, videos: Sequence[LabelledVideo], echo: Echo) -> Split:
    split = split_videos(
        videos, silos=request.silos, beta=request.beta, test_share=request.test_share, seed=request.seed
    )
    shares = ", ".join(f"{silo} {len(share)}" for silo, share in split.silos.items())
    scenes = len({video.group for video in split.test})
    echo(f"   {len(split.test)} clips of {scenes} whole scenes are held out for the test; silos get {shares}")
    return split


def _extract_test(request: DemoRequest, bundle: Path, split: Split, echo: Echo) -> dict[str, Any]:
    echo("3. extracting the held-out clips (flamest-agent extract)")
    lay_out_videos(split.test, request.out / "test" / "videos")
    for silo, videos in split.silos.items():
        lay_out_videos(videos, request.out / silo / "videos")
    folder, store = request.out / "test" / "videos", request.out / "test" / "features.sqlite"
    report = run_command("agent", "extract", "--bundle", bundle, "--videos", folder, "--store", store, quiet=False)
    for failure in report["failed"]:
        echo(f"   left out: {failure['clip']}: {failure['reason']}")
    if report["ms_per_clip"] is None:
        raise DataError("no held-out clip could be extracted", fix="see the reasons above")
    stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in report["stages_ms"].items())
    echo(f"   {report['ms_per_clip']:.1f} ms per clip ({stages}); peak memory {report['peak_mb']:.0f} MB")
    return report


def _setup(request: DemoRequest, bundle: Path, manifest: Manifest, split: Split) -> FederationSetup:
    clips = sum(len(share) for share in split.silos.values())
    return FederationSetup(
        folder=request.out,
        silos=tuple(split.silos),
        bundle=bundle,
        fingerprint=manifest.fingerprint,
        labels=split.labels,
        inputs=manifest.width,
        rounds=request.rounds,
        train=TRAIN,
        seed=request.seed,
        threads=request.threads,
        # The first round waits for the slowest silo's extraction: 5 s per clip is far above any measured time.
        deadline_s=60.0 + 5.0 * clips,
        finish_within_s=300.0 + 5.0 * clips + 10.0 * request.rounds,
    )


def _federate(setup: FederationSetup, split: Split, echo: Echo) -> list[dict[str, Any]]:
    echo(f"4. one coordinator and {len(setup.silos)} silos as processes, mutual TLS on loopback")
    echo(f"   local training: {_training(setup.train)}")
    echo("   the silos' policy allows updates of 1 clip for the demo; the default for real silos is 256")
    enrol(setup)
    steps = setup.rounds + 1
    with progress_bar("federation", steps, unit="steps") as progress:
        done = 0

        def on_progress(rounds: int, statuses: dict[str, AgentStatus]) -> None:
            nonlocal done
            joined = all(status.run for status in statuses.values())
            reached = rounds + 1 if joined else 0
            if reached > done:
                progress.advance(reached - done)
                done = reached

        history = run_federation(setup, on_progress)
    check_rounds_closed(history, setup.rounds)
    return history


def _measure(request: DemoRequest, setup: FederationSetup, split: Split, echo: Echo) -> _Measured:
    echo("5. evaluating on the held-out clips, and training the models to compare with")
    training = TrainingSetup(setup.labels, setup.train, setup.rounds, AGENT_HOLD_OUT, setup.seed)
    test = test_table(read_store(request.out / "test" / "features.sqlite", setup.fingerprint), setup.labels)
    stores = {silo: read_store(setup.store(silo), setup.fingerprint) for silo in setup.silos}
    accuracies = round_accuracies(_round_models(request, setup), test)
    with progress_bar("comparison", len(stores) + 1, unit="models") as progress:
        references = train_references(stores, test, training, progress)
    train = [video for videos in split.silos.values() for video in videos]
    meta = metadata_accuracy(*_paths_and_labels(train), *_paths_and_labels(split.test), seed=request.seed)
    _echo_accuracies(accuracies, references, meta, len(split.labels), echo)
    return _Measured(accuracies, references, meta)


def _round_models(request: DemoRequest, setup: FederationSetup) -> list[Path]:
    settings = setup.coordinator / "coordinator.toml"
    folder = request.out / "models"
    folder.mkdir()
    models = [folder / f"round-{number:03d}.safetensors" for number in range(1, setup.rounds + 1)]
    for number, path in enumerate(models, start=1):
        run_command("coordinator", "model", "--config", settings, "--round", str(number), "--out", path)
    return models


def _echo_accuracies(
    rounds: Sequence[float], references: ReferenceAccuracies, meta: float, classes: int, echo: Echo
) -> None:
    for number, accuracy in enumerate(rounds, start=1):
        echo(f"   round {number:3d}   {accuracy:6.1%}")
    echo(f"   federated    {rounds[-1]:6.1%}  (best {max(rounds):.1%})")
    echo(f"   centralised  {references.centralised:6.1%}")
    alone = ", ".join(f"{silo} {accuracy:.1%}" for silo, accuracy in references.local.items())
    echo(f"   local only   {sum(references.local.values()) / len(references.local):6.1%}  ({alone})")
    echo(f"   metadata     {meta:6.1%}  (frame size, length, bytes)")
    echo(f"   chance       {1 / classes:6.1%}")


def _paths_and_labels(videos: Sequence[LabelledVideo]) -> tuple[list[Path], list[str]]:
    return [video.path for video in videos], [video.label for video in videos]


def _predict(request: DemoRequest, setup: FederationSetup, split: Split, bundle: Path) -> dict[str, Any]:
    """Predict the first held-out clip with the last round's model."""
    video = split.test[0]
    model = request.out / "models" / f"round-{setup.rounds:03d}.safetensors"
    result = run_command("agent", "predict", "--bundle", bundle, "--model", model, video.path)
    prediction: dict[str, Any] = {**result["predictions"][0], "truth": video.label}
    return prediction


def _report(request: DemoRequest, manifest: Manifest, split: Split, outcome: _Outcome) -> DemoReport:
    measured, predicted = outcome.measured, outcome.predicted
    head = HeadSpec(inputs=manifest.width, outputs=len(split.labels))
    return DemoReport(
        labels=split.labels,
        chance=1 / len(split.labels),
        rounds=tuple(RoundAccuracy(number, value) for number, value in enumerate(measured.rounds, start=1)),
        silos=tuple(
            SiloReport(silo, len(videos), Counter(video.label for video in videos), measured.references.local[silo])
            for silo, videos in split.silos.items()
        ),
        test_clips=len(split.test),
        test_groups=len({video.group for video in split.test}),
        centralised_accuracy=measured.references.centralised,
        metadata_accuracy=measured.metadata,
        bytes_per_silo_round=bytes_per_silo_round(outcome.history),
        head_parameters=head.parameters,
        extractor_parameters=sum(source.parameters for source in manifest.sources.values()),
        ms_per_clip=outcome.extraction["ms_per_clip"],
        stages_ms=outcome.extraction["stages_ms"],
        seconds=outcome.seconds,
        created=utc_text(),
        prediction=ClipPrediction(
            video=Path(predicted["video"]).name,
            labels=tuple((item["label"], item["probability"]) for item in predicted["labels"]),
            truth=predicted["truth"],
            frames=keyframe_strip(Path(predicted["video"]), manifest.keyframes),
            caption=predicted["caption"],
        ),
        settings={
            "weights": ", ".join(source.name for source in manifest.sources.values()),
            "split over silos": f"Dirichlet, beta {request.beta}",
            "local training": _training(TRAIN),
        },
        seeds={"demo": request.seed, "extraction": manifest.extraction_seed},
        versions={"flamest": __version__, **{package: metadata.version(package) for package in PACKAGES}},
    )


def _training(train: TrainSettings) -> str:
    return f"{train.epochs} epochs per round, batch {train.batch_size}, Adam at {train.learning_rate}"


def bytes_per_silo_round(history: Sequence[dict[str, Any]]) -> int:
    """Bytes of the model down and the update up for one silo and round; the mean over the closed rounds."""
    closed = [row for row in history if row["status"] == "closed"]
    total = sum(row["sent_bytes"] + row["received_bytes"] for row in closed)
    updates = sum(row["accepted"] for row in closed)
    return int(total / max(updates, 1))
