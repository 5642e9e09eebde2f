"""Whole runs of KD and ActionCLIP on a few tiny clips, and their checkpoints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from flamest.base.errors import DataError, UsageError
from flamest.experiments.baselines.actionclip import (
    ActionClipRequest,
    actionclip_settings,
    actionclip_steps,
    run_actionclip,
)
from flamest.experiments.baselines.checkpoints import load_checkpoint, save_checkpoint
from flamest.experiments.baselines.clip_towers import build_video_text, load_towers
from flamest.experiments.baselines.clips import ClipShape
from flamest.experiments.baselines.kd import kd_steps, run_kd, split_kd_clips
from flamest.experiments.baselines.kd_settings import CentralSettings, KdRequest, KdSettings, kd_settings
from flamest.experiments.baselines.networks import build_network, count_parameters
from flamest.experiments.baselines.training import Fit, batches, rate_at

SIDE = 32


def tiny_kd(clips: Path, out: Path, **changes: object) -> KdRequest:
    fit = Fit(2, batch_size=6, learning_rate=3e-3, weight_decay=0.0)
    settings = KdSettings(CentralSettings(fit, fit, fit), ClipShape(frames=2, size=SIDE, margin=4))
    federated = dataclasses.replace(settings.federated, silos=2, rounds=2, beta=None, batch_size=4)
    return KdRequest(clips, out, settings=dataclasses.replace(settings, federated=federated), threads=1, **changes)


def tiny_actionclip(clips: Path, out: Path, **changes: object) -> ActionClipRequest:
    settings = actionclip_settings("small", epochs=2)
    shape = dataclasses.replace(settings.shape, frames=1, spare=2)
    fit = dataclasses.replace(settings.fit, batch_size=8)
    settings = dataclasses.replace(settings, shape=shape, fit=fit, fusion="transformer")
    return ActionClipRequest(clips, out, settings=settings, clip="random", threads=1, **changes)


def test_the_learning_rate_rises_and_falls_to_0():
    fit = Fit(10, 8, 0.1, 0.0, warmup=0.2)
    assert rate_at(fit, 1.0) == pytest.approx(0.05)
    assert rate_at(fit, 2.0) == pytest.approx(0.1)
    assert rate_at(fit, 10.0) == pytest.approx(0.0)


def test_no_batch_has_a_single_clip():
    for rows in (9, 8, 17, 2):
        parts = list(batches(np.arange(rows), 8, np.random.default_rng(0)))
        assert sorted(np.concatenate(parts)) == list(range(rows))
        assert min(map(len, parts)) >= 2


def test_kd_writes_a_result_and_resumes_bit_for_bit(clips, tmp_path, counting):
    request = tiny_kd(clips, tmp_path / "whole")
    split = split_kd_clips(request)
    rows = [*split.centre_rows, *split.clips.test, *(row for silo in split.silo_rows for row in silo)]
    assert sorted(rows) == list(range(len(split.clips.videos)))
    progress = counting()
    whole = run_kd(request, progress)
    assert progress.steps == kd_steps(request)
    written = json.loads((tmp_path / "whole" / "kd.json").read_text())
    assert written["curve"] == list(whole.curve)
    assert written["settings"]["film"]["size"] == SIDE
    assert {"best", "last", "seconds_train", "seconds_test", "trainable_parameters", "train_curve"} <= written.keys()
    assert len(whole.curve) == len(whole.train_curve) == 2
    assert whole.details["clips"]["centre"] == len(split.centre_rows)

    interrupted = tiny_kd(clips, tmp_path / "stopped")
    for stop in (60, kd_steps(request) - 5):  # while the teacher learns; in the last round
        with pytest.raises(KeyboardInterrupt):
            run_kd(interrupted, counting(stop))
    resumed = run_kd(interrupted, counting())
    assert resumed.curve == whole.curve
    assert resumed.train_curve == whole.train_curve
    for first in (tmp_path / "whole" / "checkpoints").rglob("*.safetensors"):
        second = tmp_path / "stopped" / first.relative_to(tmp_path / "whole")
        ours, theirs = load_checkpoint(first), load_checkpoint(second)
        assert ours is not None
        assert theirs is not None
        assert all(torch.equal(tensor, theirs[0][name]) for name, tensor in ours[0].items())


def test_the_centre_may_have_other_classes(clips, tmp_path, counting, write_clip):
    other = tmp_path / "other"
    other.mkdir()
    for label, hue in (("green", 1), ("blue", 2)):
        (other / label).mkdir()
        for number in range(3):
            write_clip(other / label / f"{number}.mp4", hue, False, number)
    request = tiny_kd(clips, tmp_path / "out", central=other)
    result = run_kd(request, counting())
    assert result.details["clips"]["centre"] == 6
    assert result.details["central"]["teacher"]["test_curve"] == []
    assert result.trainable_parameters == count_parameters(build_network("student", "small", "2d", 3, seed=0))


def test_actionclip_writes_a_result_and_resumes_bit_for_bit(clips, tmp_path, counting):
    request = tiny_actionclip(clips, tmp_path / "whole")
    progress = counting()
    whole = run_actionclip(request, progress)
    assert progress.steps == actionclip_steps(request)
    written = json.loads((tmp_path / "whole" / "actionclip.json").read_text())
    assert written["details"]["initial_weights"].startswith("random")
    assert written["curve"] == list(whole.curve)
    interrupted = tiny_actionclip(clips, tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        run_actionclip(interrupted, counting(actionclip_steps(request) - 5))
    resumed = run_actionclip(interrupted, counting())
    assert resumed.curve == whole.curve
    assert resumed.train_curve == whole.train_curve


def test_actionclip_at_full_scale_needs_a_published_clip(clips, tmp_path, counting):
    from flamest.export.networks.small import build_small_clip
    from flamest.export.weights.tokenizer import small_tokenizer

    request = tiny_actionclip(clips, tmp_path / "out", scale="full")
    with pytest.raises(UsageError, match="published CLIP"):
        run_actionclip(request, counting())
    folder = tmp_path / "clip"
    with pytest.raises(UsageError, match=r"config\.json"):
        run_actionclip(dataclasses.replace(request, clip=str(folder)), counting())
    build_small_clip().save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(small_tokenizer())
    towers = load_towers(str(folder), seed=0)
    assert towers.image_size == 96
    assert build_video_text(towers, "mean", frames=1, seed=0).texts(["a ball", "the red box"]).shape == (2, 128)


def test_a_damaged_checkpoint_is_an_error_with_a_fix(tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_checkpoint(path, {"w": torch.ones(3)}, {"epochs": 1})
    assert load_checkpoint(path) is not None
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError) as caught:
        load_checkpoint(path)
    assert "rm " in caught.value.fix


@pytest.mark.parametrize("make", [kd_settings, actionclip_settings])
def test_zero_epochs_are_refused(make):
    with pytest.raises(UsageError):
        make("small", epochs=0)
