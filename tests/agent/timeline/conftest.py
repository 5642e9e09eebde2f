"""A model that knows some of the mini-world's actions, and a video of three of them and one that it does not know."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

UNKNOWN_CLASSES = tuple(f"ring_{motion}" for motion in ("crossing", "lifting", "circling", "approaching", "swinging"))
ORDER = ("ball_lifting", "ring_lifting", "star_circling", "cross_lifting")  # the second is one of them


class MiniworldRecording(NamedTuple):
    bundle: Path
    model: Path
    video: Path
    truth: tuple[tuple[str, float, float], ...]  # label, start and end in seconds


def write_calibrated_model(path, seed=0):
    """Train on a few packaged features without some classes, and calibrate on scenes of its own.

    A coverage of 85 %: the thresholds of so small a model let most unknown clips pass at 95 %.
    """
    import flamest as fl
    from flamest.agent.training.trainer import HeadTrainer
    from flamest.fedproto.calibration import make_calibration
    from flamest.fedproto.model_file import write_model

    features = fl.load("miniworld")
    known = np.array([label not in UNKNOWN_CLASSES for label in np.array(features.labels)[features.y]])
    scenes = sorted(set(features.groups))
    calibrating = np.isin(features.groups, scenes[: len(scenes) // 3])
    names = np.array(features.labels)[features.y]
    train = known & ~calibrating
    made = fl.train(
        fl.Features.from_arrays(features.x[train], names[train].tolist()),
        seed=seed,
        recipe="paper",
        rounds=20,
        progress=False,
    ).model.file()
    held = known & calibrating
    logits = HeadTrainer(made.head, threads=1).logits(made.params, features.x[held])
    y = np.array([made.labels.index(name) for name in names[held]])
    fingerprint = fl.open_bundle("miniworld").fingerprint
    write_model(path, replace(made, fingerprint=fingerprint, calibration=make_calibration(logits, y, coverage=0.85)))
    return path


@pytest.fixture(scope="session")
def miniworld_recording(tmp_path_factory):
    from flamest.experiments.miniworld.videos import ClipKey, render_recording
    from flamest.runtime.bundle.packaged import miniworld_bundle

    folder = tmp_path_factory.mktemp("timeline")
    keys = [ClipKey(5, 7, *label.split("_"), take) for label in ORDER for take in range(3)]
    parts = render_recording(folder / "long.mp4", keys)
    truth = tuple(
        (label, parts[3 * number][1].start_s, parts[3 * number + 2][1].end_s) for number, label in enumerate(ORDER)
    )
    model = write_calibrated_model(folder / "model.safetensors")
    return MiniworldRecording(miniworld_bundle(), model, folder / "long.mp4", truth)
