"""The demo's report page, filled with what the demo measured."""

from __future__ import annotations

import platform
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from .. import __version__
from ..base.clock import utc_text
from ..base.process import usable_cores
from ..fedproto.head import HeadSpec
from ..runtime.bundle.manifest import Manifest
from ..runtime.bundle.packaged import MINIWORLD
from ..runtime.video.pictures import frames_at, keyframe_strip
from .demo_checks import DemoRequest
from .demo_evaluation import TRAIN, ReferenceAccuracies, training_text
from .demo_examples import ExampleClip, ExampleClips
from .report.record import ClipPrediction, DemoReport, RoundAccuracy, RunInputs, SiloReport
from .silos import Split, is_miniworld

PACKAGES = ("numpy", "onnxruntime", "grpcio", "av", "scikit-learn")


@dataclass(frozen=True)
class Measured:
    """Accuracies on the test clips, 0 to 1."""

    rounds: list[float]  # of each round's model
    references: ReferenceAccuracies
    metadata: float


@dataclass(frozen=True)
class Outcome:
    """Results of the demo's steps."""

    extraction: dict[str, Any]  # report of the test clips' extraction
    history: list[dict[str, Any]]  # of the coordinator's rounds
    measured: Measured
    examples: ExampleClips
    predicted: tuple[dict[str, Any], ...]  # for each of examples.shown
    seconds: float  # of the whole demo


def build_report(request: DemoRequest, manifest: Manifest, split: Split, outcome: Outcome) -> DemoReport:
    """Content of the page."""
    measured, examples = outcome.measured, outcome.examples
    shown = [
        _clip_prediction(clip, predicted, manifest)
        for clip, predicted in zip(examples.shown, outcome.predicted, strict=True)
    ]
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
        inputs=_inputs(request, manifest),
        correct=shown[0] if examples.right is not None else None,
        doubtful=shown[-1],
        wrong_clips=examples.wrong,
        command=repeat_command(request),
        bundle={
            "name": MINIWORLD if request.bundle is None else str(request.bundle),
            "weights": ", ".join(dict.fromkeys(source.name for source in manifest.sources.values())),
            "extractor": manifest.extractor,
            "fingerprint": manifest.fingerprint,
        },
        settings={
            "split over silos": f"Dirichlet, beta {request.beta}",
            "local training": training_text(TRAIN),
        },
        seeds={"demo": request.seed, "extraction": manifest.extraction_seed},
        versions={
            "flamest": __version__,
            "Python": platform.python_version(),
            **{package: metadata.version(package) for package in PACKAGES},
            "machine": f"{platform.machine()}, {usable_cores()} cores",
        },
    )


def _inputs(request: DemoRequest, manifest: Manifest) -> RunInputs:
    own_clips = request.videos is not None and not is_miniworld(request.videos)
    own_networks = any(source.name != MINIWORLD for source in manifest.sources.values())
    return RunInputs(str(request.videos) if own_clips else None, str(request.bundle) if own_networks else None)


def repeat_command(request: DemoRequest) -> str:
    """The command line that runs the same demo again."""
    words = ["flamest-demo", "--silos", str(request.silos), "--rounds", str(request.rounds)]
    words += ["--beta", str(request.beta), "--test-share", str(request.test_share)]
    words += ["--seed", str(request.seed), "--threads", str(request.threads)]
    words += ["--videos", str(request.videos)] if request.videos is not None else []
    words += ["--bundle", str(request.bundle)] if request.bundle is not None else []
    words += ["--export"] if request.export else []
    return shlex.join(words)


def _clip_prediction(clip: ExampleClip, predicted: dict[str, Any], manifest: Manifest) -> ClipPrediction | None:
    """The clip as the page shows it; None when it could not be read again."""
    if not predicted["labels"]:
        return None
    path, segment = clip.video.path, clip.video.segment
    return ClipPrediction(
        video=clip.video.named("/".join(path.parts[-2:])),
        labels=tuple((item["label"], item["probability"]) for item in predicted["labels"]),
        truth=clip.video.label,
        frames=(
            frames_at(path, clip.times_s, segment=segment)
            if clip.times_s
            else keyframe_strip(path, manifest.keyframes, segment=segment)
        ),
        caption=predicted["caption"],
    )


def bytes_per_silo_round(history: Sequence[dict[str, Any]]) -> int:
    """Bytes of the model down and the update up for one silo and round; the mean over the closed rounds."""
    closed = [row for row in history if row["status"] == "closed"]
    total = sum(row["sent_bytes"] + row["received_bytes"] for row in closed)
    updates = sum(row["accepted"] for row in closed)
    return int(total / max(updates, 1))
