"""The demo: the whole system on this machine, from bundle and clips to rounds, comparison and report.

Every part is the real one: FLAMeST's own commands as processes, real video files, gRPC over mutual TLS. Without
clips and bundle, the mini-world's videos and small networks are used (docs/explanation/miniworld.md).
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..base.errors import DataError, StorageError
from ..base.process import usable_cores
from ..base.progress import progress_bar
from ..runtime.bundle.manifest import Manifest
from ..runtime.bundle.manifest_reading import read_manifest
from ..runtime.bundle.packaged import miniworld_bundle
from .demo_checks import SCENES, DemoRequest, check_demo
from .demo_evaluation import (
    TRAIN,
    ReferenceAccuracies,
    TrainingSetup,
    read_store,
    round_accuracies,
    test_table,
    train_references,
    training_text,
)
from .demo_examples import ExampleClips, find_examples
from .demo_report import Measured, Outcome, build_report
from .federation import AGENT_HOLD_OUT, FederationSetup, check_rounds_closed, enrol, run_federation
from .federation_bars import federation_bars
from .metadata import metadata_accuracy
from .miniworld.videos import CLASSES, EXPERIMENT_SEED, render_dataset
from .processes import run_command
from .report.page import write_report
from .silos import LabelledVideo, Split, labelled_videos, lay_out_videos

Echo = Callable[[str], None]


class Steps:
    """Lines for the person: steps are numbered in the order in which they begin, what they find is below them."""

    def __init__(self, echo: Echo) -> None:
        self._echo = echo
        self._number = 0

    def begin(self, text: str) -> None:
        """Number a step and show it."""
        self._number += 1
        self._echo(f"{self._number}. {text}")

    def note(self, text: str) -> None:
        """Show what the step found."""
        self._echo(f"   {text}")


def run_demo(request: DemoRequest, echo: Echo) -> dict[str, Any]:
    """Run the demo and write ``OUT/report.html``; returns the figures. Raises FlamestError.

    Everything that can be checked beforehand is: nothing is written when something is missing.
    """
    started = time.monotonic()
    steps = Steps(echo)
    steps.begin("checking packages, output folder, free disk and what was given")
    given = check_demo(request)
    _create_output(request.out)
    with _emptied_if_interrupted(request.out):
        bundle, exported = _bundle(request, given.bundle, steps)
        manifest = read_manifest(bundle)
        split = _split(request, given.videos or _render(request, steps), steps)
        extraction = _extract_test(request, bundle, split, steps)
        setup = _setup(request, bundle, manifest, split)
        history = _federate(setup, split, steps)
        measured = _measure(request, setup, split, steps)
        examples = _examples(request, setup, split)
        predicted = _predict(request, setup, examples, steps)
        outcome = Outcome(extraction, history, measured, examples, predicted, time.monotonic() - started)
        report = build_report(request, manifest, split, outcome)
        write_report(request.out / "report.html", report)
        echo(f"report: {request.out / 'report.html'}   ({outcome.seconds:.0f} s in all)")
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
        "bundle": str(bundle),
        "fingerprint": manifest.fingerprint,
        "prediction": predicted[0],
        "wrong_prediction": predicted[-1] if examples.wrong else None,
        "wrong_clips": examples.wrong,
        "report": str(request.out / "report.html"),
        "seconds": report.seconds,
    }


def _create_output(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create {out}: {error.strerror}", fix="give another --out") from error


@contextlib.contextmanager
def _emptied_if_interrupted(out: Path) -> Iterator[None]:
    """Remove everything in ``out``, which was empty before, when Ctrl-C or SIGTERM ends the block."""
    try:
        yield
    except KeyboardInterrupt:
        for part in out.iterdir():
            shutil.rmtree(part, ignore_errors=True) if part.is_dir() and not part.is_symlink() else part.unlink()
        raise


def _bundle(request: DemoRequest, given: Path | None, steps: Steps) -> tuple[Path, dict[str, Any]]:
    if given is not None:
        steps.begin(f"using the bundle {given}")
        return given, {}
    out = request.out / "bundle"
    if not request.export:
        steps.begin("unpacking the mini-world's bundle, which comes with the package (--export makes it from PyTorch)")
        return miniworld_bundle(out), {}
    steps.begin("exporting the mini-world's small networks (flamest-export --backend onnx --weights miniworld)")
    exported = run_command("export", "--backend", "onnx", "--weights", "miniworld", "--out", out, quiet=False)
    steps.note(
        f"parity with PyTorch verified, captions equal: {exported['captions_equal']}, {exported['seconds']:.0f} s"
    )
    return out, exported


def _render(request: DemoRequest, steps: Steps) -> tuple[LabelledVideo, ...]:
    folder = request.out / "clips"
    total = len(CLASSES) * SCENES
    steps.begin(f"rendering {total} clips of the mini-world: {SCENES} scenes, {len(CLASSES)} classes")
    seed, processes = EXPERIMENT_SEED + request.seed, usable_cores()
    with progress_bar("rendering", total, unit="clips") as progress:
        render_dataset(folder, groups=SCENES, seed=seed, progress=progress, processes=processes)
    return labelled_videos(folder)


def _split(request: DemoRequest, videos: Sequence[LabelledVideo], steps: Steps) -> Split:
    split = request.split(videos)
    shares = ", ".join(f"{silo} {len(share)}" for silo, share in split.silos.items())
    scenes = len({video.group for video in split.test})
    if request.videos is not None:
        steps.begin(f"using the {len(videos)} clips of {request.videos}")
    steps.note(f"{len(split.test)} clips of {scenes} whole scenes are held out for the test; silos get {shares}")
    return split


def _extract_test(request: DemoRequest, bundle: Path, split: Split, steps: Steps) -> dict[str, Any]:
    steps.begin("extracting the held-out clips (flamest-agent extract)")
    lay_out_videos(split.test, request.out / "test" / "videos")
    for silo, videos in split.silos.items():
        lay_out_videos(videos, request.out / silo / "videos")
    folder, store = request.out / "test" / "videos", request.out / "test" / "features.sqlite"
    report = run_command("agent", "extract", "--bundle", bundle, "--videos", folder, "--store", store, quiet=False)
    for failure in report["failed"]:
        steps.note(f"left out: {failure['clip']}: {failure['reason']}")
    if report["ms_per_clip"] is None:
        raise DataError("no held-out clip could be extracted", fix="see the reasons above")
    stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in report["stages_ms"].items())
    steps.note(f"{report['ms_per_clip']:.1f} ms per clip; peak memory {report['peak_mb']:.0f} MB")
    steps.note(f"stages of one clip, which overlap with those of others, in ms: {stages}")
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


def _federate(setup: FederationSetup, split: Split, steps: Steps) -> list[dict[str, Any]]:
    steps.begin(f"one coordinator and {len(setup.silos)} silos as processes, mutual TLS on loopback")
    steps.note(f"local training: {training_text(setup.train)}")
    steps.note(
        "here a silo sends updates of any number of clips; a real one sends none of fewer than 256 (min_samples)"
    )
    enrol(setup)
    clips = sum(len(videos) for videos in split.silos.values())
    with federation_bars(clips, setup.rounds) as show:
        history = run_federation(setup, show)
    check_rounds_closed(history, setup.rounds)
    return history


def _measure(request: DemoRequest, setup: FederationSetup, split: Split, steps: Steps) -> Measured:
    steps.begin("evaluating on the held-out clips, and training the models to compare with")
    training = TrainingSetup(setup.labels, setup.train, setup.rounds, AGENT_HOLD_OUT, setup.seed)
    test = test_table(read_store(request.out / "test" / "features.sqlite", setup.fingerprint), setup.labels)
    stores = {silo: read_store(setup.store(silo), setup.fingerprint) for silo in setup.silos}
    accuracies = round_accuracies(_round_models(request, setup), test)
    with progress_bar("comparison", len(stores) + 1, unit="models") as progress:
        references = train_references(stores, test, training, progress)
    train = [video for videos in split.silos.values() for video in videos]
    meta = metadata_accuracy(train, split.test, seed=request.seed)
    _echo_accuracies(accuracies, references, meta, len(split.labels), steps)
    return Measured(accuracies, references, meta)


def _round_models(request: DemoRequest, setup: FederationSetup) -> list[Path]:
    settings = setup.coordinator / "coordinator.toml"
    folder = request.out / "models"
    folder.mkdir()
    models = [folder / f"round-{number:03d}.safetensors" for number in range(1, setup.rounds + 1)]
    for number, path in enumerate(models, start=1):
        run_command("coordinator", "model", "--config", settings, "--round", str(number), "--out", path)
    return models


def _echo_accuracies(
    rounds: Sequence[float], references: ReferenceAccuracies, meta: float, classes: int, steps: Steps
) -> None:
    for number, accuracy in enumerate(rounds, start=1):
        steps.note(f"round {number:3d}   {accuracy:6.1%}")
    steps.note(f"federated    {rounds[-1]:6.1%}  (best {max(rounds):.1%})")
    steps.note(f"centralised  {references.centralised:6.1%}")
    alone = ", ".join(f"{silo} {accuracy:.1%}" for silo, accuracy in references.local.items())
    steps.note(f"alone, mean  {sum(references.local.values()) / len(references.local):6.1%}  ({alone})")
    steps.note(f"metadata     {meta:6.1%}  (frame size, length, bytes)")
    steps.note(f"chance       {1 / classes:6.1%}")


def _examples(request: DemoRequest, setup: FederationSetup, split: Split) -> ExampleClips:
    store = request.out / "test" / "features.sqlite"
    test = test_table(read_store(store, setup.fingerprint), setup.labels)
    return find_examples(_last_model(request), store, setup.fingerprint, test, split)


def _last_model(request: DemoRequest) -> Path:
    return request.out / "models" / f"round-{request.rounds:03d}.safetensors"


def _predict(
    request: DemoRequest, setup: FederationSetup, examples: ExampleClips, steps: Steps
) -> tuple[dict[str, Any], ...]:
    """Predict the clips to show with the last round's model."""
    what = f"a clip that is right and {'one that is wrong' if examples.wrong else 'the least certain one'}"
    steps.begin(f"predicting {what} (flamest-agent predict)")
    videos = [clip.video for clip in examples.shown]
    names = [video.named(video.path) for video in videos]
    result = run_command("agent", "predict", "--bundle", setup.bundle, "--model", _last_model(request), *names)
    predicted = tuple(
        {**found, "truth": video.label} for found, video in zip(result["predictions"], videos, strict=True)
    )
    for prediction in predicted:
        if not prediction["labels"]:  # extracted before, but not now: decoding took too long, or the file has changed
            steps.note(f"left out: {prediction['video']}: {prediction['reason']}")
            continue
        first = prediction["labels"][0]
        verdict = "right" if first["label"] == prediction["truth"] else "wrong"
        steps.note(f"{verdict}: {prediction['truth']}, predicted {first['label']} with {first['probability']:.1%}")
        steps.note(f"       caption: {prediction['caption']}")
    return predicted
