"""The demo's report page, filled with what the demo measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..base.clock import utc_text
from ..fedproto.head import HeadSpec
from ..runtime.bundle.manifest import Manifest
from .demo_checks import DemoRequest
from .demo_evaluation import TRAIN, ReferenceAccuracies, training_text
from .report.page import ClipPrediction, DemoReport, RoundAccuracy, SiloReport
from .report.video_frames import keyframe_strip
from .silos import Split

PACKAGES = ("numpy", "onnxruntime", "grpcio", "av", "scikit-learn")


@dataclass(frozen=True)
class Measured:
    """Accuracies on the test clips, 0 to 1."""

    rounds: list[float]  # of each round's model
    references: ReferenceAccuracies
    metadata: float


@dataclass(frozen=True)
class Outcome:
    """What the demo's steps gave."""

    extraction: dict[str, Any]  # report of the test clips' extraction
    history: list[dict[str, Any]]  # of the coordinator's rounds
    measured: Measured
    predicted: dict[str, Any]  # for one held-out clip
    seconds: float  # of the whole demo


def build_report(request: DemoRequest, manifest: Manifest, split: Split, outcome: Outcome) -> DemoReport:
    """Content of the page."""
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
            "local training": training_text(TRAIN),
        },
        seeds={"demo": request.seed, "extraction": manifest.extraction_seed},
        versions={"flamest": __version__, **{package: metadata.version(package) for package in PACKAGES}},
    )


def bytes_per_silo_round(history: Sequence[dict[str, Any]]) -> int:
    """Bytes of the model down and the update up for one silo and round; the mean over the closed rounds."""
    closed = [row for row in history if row["status"] == "closed"]
    total = sum(row["sent_bytes"] + row["received_bytes"] for row in closed)
    updates = sum(row["accepted"] for row in closed)
    return int(total / max(updates, 1))
