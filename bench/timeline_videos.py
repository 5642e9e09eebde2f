"""Long videos of mini-world scenes for bench/timeline.py, with the truth, a model that knows 20 of the 25 classes, and
the embeddings of their windows, kept in a folder so that a stopped run goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import flamest as fl
import numpy as np
import numpy.typing as npt
from flamest.agent.timeline.reading import embedding, open_reader
from flamest.agent.timeline.windows import window_plan
from flamest.agent.training.trainer import HeadTrainer
from flamest.experiments.miniworld.videos import ClipKey, render_recording
from flamest.fedproto.calibration import make_calibration
from flamest.fedproto.model_file import ModelFile, read_model, write_model
from flamest.runtime.backends.opening import OpeningOptions
from flamest.runtime.bundle.packaged import resolve_bundle
from flamest.runtime.clip_records import Segment

from .feature_sets import FeatureSet

FIRST_SCENE, CLIP_SEED = 300, 1616  # of no clip that anything is trained or calibrated on
LEFT_OUT, KNOWN_STRETCHES, UNKNOWN_STRETCHES, TAKES = 5, 6, 2, (2, 6)
TRAINING, CALIBRATION = 40, 20  # scenes, each with a clip of every class


@dataclass(frozen=True)
class Stretch:
    """A part of a video in which one action is done, again and again."""

    label: str
    start_s: float
    end_s: float


@dataclass(frozen=True, eq=False)
class Windows:
    """Embedded windows of a video."""

    x: npt.NDArray[np.float32]  # [N, D]
    stretches: tuple[Segment, ...]


def left_out(labels: tuple[str, ...], seed: int) -> frozenset[str]:
    """Return the classes that this seed's model does not know."""
    return frozenset(np.random.default_rng([seed, 1]).choice(labels, LEFT_OUT, replace=False).tolist())


def compose(labels: tuple[str, ...], seed: int, minutes: float | None = None) -> list[list[ClipKey]]:
    """Return the takes of each stretch: six actions that the model knows and two that it does not, in random order.

    ``minutes``: go on with further stretches until the video is about so long.
    """
    random, unknown = np.random.default_rng([seed, 2]), left_out(labels, seed)
    known = [label for label in labels if label not in unknown]
    stretches: list[list[ClipKey]] = []
    number = 0
    while not stretches or (minutes is not None and 2.9 * sum(map(len, stretches)) < 60 * minutes):
        drawn = random.choice(known, KNOWN_STRETCHES, replace=False).tolist()
        drawn += random.choice(sorted(unknown), UNKNOWN_STRETCHES, replace=False).tolist()
        for label in random.permutation(drawn).tolist():
            kind, motion = label.split("_")
            takes = int(random.integers(*TAKES))
            stretches.append(
                [ClipKey(CLIP_SEED, FIRST_SCENE + seed, kind, motion, number + take) for take in range(takes)]
            )
            number += takes
    return stretches


def video_of(folder: Path, labels: tuple[str, ...], seed: int) -> tuple[Path, list[Stretch]]:
    """Return the seed's video, rendered where it is not there yet, and its stretches."""
    path, stretches = folder / f"video-{seed}.mp4", compose(labels, seed)
    if not path.exists():
        building = path.with_suffix(".part.mp4")
        render_recording(building, [key for stretch in stretches for key in stretch])
        building.rename(path)
    truth, at = list[Stretch](), 0
    for stretch in stretches:
        frames, fps = sum(key.spec().frames for key in stretch), stretch[0].spec().scene.fps
        truth.append(Stretch(stretch[0].label, at / fps, (at + frames) / fps))
        at += frames
    return path, truth


def model_of(folder: Path, features: FeatureSet, seed: int) -> ModelFile:
    """Return the seed's model: 20 classes, trained on 40 scenes and calibrated on 20 others."""
    path = folder / f"model-{seed}.safetensors"
    if not path.exists():
        names = np.array(features.labels)[features.table.y]
        scene = np.array([int(group[1:]) for group in features.groups])
        known = ~np.isin(names, sorted(left_out(features.labels, seed)))
        training = known & (scene < TRAINING)
        run = fl.train(
            fl.Features.from_arrays(features.table.x[training], names[training].tolist()), seed=seed, progress=False
        )
        held_out = known & (scene >= TRAINING) & (scene < TRAINING + CALIBRATION)
        made = run.model.file()
        y = np.array([made.labels.index(name) for name in names[held_out]])
        logits = HeadTrainer(made.head, threads=1).logits(made.params, features.table.x[held_out])
        fingerprint = fl.open_bundle("miniworld").fingerprint
        write_model(path, replace(made, fingerprint=fingerprint, calibration=make_calibration(logits, y)))
    return read_model(path)


def windows_of(folder: Path, video: Path, window_s: float, stride_s: float) -> Windows:
    """Return the embedded windows of a video."""
    path = folder / f"{video.stem}-{window_s:g}-{stride_s:g}.npz"
    if not path.exists():
        x, stretches = [], []
        plan = window_plan(window_s, stride_s)
        with open_reader(resolve_bundle(Path("miniworld")), plan=plan, opening=OpeningOptions(threads=1)) as reader:
            for window, result in reader.windows(video):
                assert result.features is not None, result.error
                x.append(embedding(result.features)[0])
                stretches.append((window.stretch.start_us, window.stretch.end_us))
        building = path.with_suffix(".part.npz")
        np.savez_compressed(building, x=np.array(x), stretches=np.array(stretches))
        building.rename(path)
    with np.load(path, allow_pickle=False) as data:
        return Windows(data["x"], tuple(Segment(int(start), int(end)) for start, end in data["stretches"]))
