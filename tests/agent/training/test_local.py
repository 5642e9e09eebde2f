"""``flamest-agent train``: the model's file is calibrated on the clips that were held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.agent.training.local import LocalRequest, train_from_store
from flamest.agent.training.trainer import HeadTrainer
from flamest.base.files import sha256_bytes
from flamest.fedproto.calibration import is_known, probabilities
from flamest.fedproto.model_file import read_model
from flamest.runtime.clip_records import Clip

LABELS = ("fall", "run", "walk", "wave")
CENTRES = 5 * np.eye(4, 16, dtype=np.float32)


def embeddings(seed: int, count: int, centres: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(count, 16))
    return (centres[np.arange(count) % len(centres)] + noise).astype(np.float32)


def trained(folder: Path, count: int) -> dict[str, float | None]:
    rows = []
    for row, x in enumerate(embeddings(0, count, CENTRES)):
        clip = Clip(Path(f"{row}.mp4"), sha256_bytes(str(row).encode()), LABELS[row % 4], f"g{row // 4}")
        rows.append((f"{row}.mp4", FeatureRow(clip, x, 8, "fingerprint", "fp32")))
    with FeatureStore.open(folder / "features.sqlite") as store:
        store.add_rows(rows)
    given = {"hidden": [], "train": {"epochs": 2, "learning_rate": 0.003}}
    request = LocalRequest(folder / "features.sqlite", None, None, "paper", given, 10, 0.3, 0, 1)
    return train_from_store(request, folder / "model.safetensors")


def test_train_calibrates_the_model_on_the_held_out_clips(tmp_path):
    figures = trained(tmp_path, 800)
    model = read_model(tmp_path / "model.safetensors")
    assert model.calibration is not None
    assert (model.calibration.clips, model.calibration.silos) == (figures["held_out"], 0)
    assert (figures["temperature"], figures["coverage"]) == (model.calibration.temperature, 0.95)
    trainer = HeadTrainer(model.head, threads=1)
    known, others = (
        is_known(probabilities(trainer.logits(model.params, x), model.calibration), model.calibration).mean()
        for x in (embeddings(1, 2000, CENTRES), embeddings(2, 400, np.zeros((1, 16), np.float32)))
    )
    assert known == pytest.approx(0.95, abs=0.03)
    assert others < 0.5


def test_too_few_held_out_clips_leave_the_model_uncalibrated(tmp_path):
    figures = trained(tmp_path, 40)
    assert figures["held_out"] < 19
    assert (figures["temperature"], figures["coverage"]) == (None, None)
    assert read_model(tmp_path / "model.safetensors").calibration is None
