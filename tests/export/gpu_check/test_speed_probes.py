"""Speeds that gpu-check measures: from prepared frames, and PyTorch's."""

from __future__ import annotations

from pathlib import Path

import pytest
from flamest.export.gpu_check.prepared_frames import MOST_ROUNDS, measure_prepared, steady_part, warm_up
from flamest.export.gpu_check.torch_speed import TorchChain, measure_torch
from flamest.runtime.bundle.packaged import resolve_bundle


def rounds_of(work):
    """Rounds of a warm-up whose captures and replays after each are ``work``; the last stays."""
    states = iter([(0, 0), *work])
    last = [(0, 0)]

    def state():
        last[0] = next(states, last[0])
        return last[0]

    return warm_up(lambda: None, state)


def test_warming_up_ends_after_a_round_of_replays_alone():
    assert rounds_of([(3, 0), (5, 4), (5, 9)]) == 3
    assert rounds_of([(0, 0), (0, 0)]) == 2


def test_warming_up_ends_where_captures_never_do():
    assert rounds_of([(number, number) for number in range(1, 40)]) == MOST_ROUNDS


def test_filling_and_draining_the_stages_are_not_timed():
    """Batches of two, one a second; filling takes 10 s, the last batches come in no time."""
    times = [10.0, 10.0, 11.0, 11.0, 12.0, 12.0, 13.0, 13.0, 14.0, 14.0, 14.0, 14.0]
    part, speed = steady_part([(at, number) for number, at in enumerate(times)], 2, 2)
    assert part == list(range(2, 10))
    assert speed == pytest.approx(2.0)


def test_prepared_frames_are_timed_without_a_capture():
    row = measure_prepared(resolve_bundle(Path("miniworld")), "onnxruntime", [2])["batches"]["2"]
    assert row["clips"] == 40
    assert row["clips_per_second"] > 0
    assert row["captures_while_timed"] == 0


def test_a_batch_at_which_pytorch_fails_stops_no_other(monkeypatch):
    run = TorchChain.run

    def failing(self, pixels, motion):
        if len(pixels) == 1:
            raise ValueError("the compiler gave up\nat length")
        return run(self, pixels, motion)

    monkeypatch.setattr(TorchChain, "run", failing)
    batches = measure_torch("random:tiny", [1, 2], device="cpu")["batches"]
    assert batches["1"] == {"problem": "ValueError: the compiler gave up"}
    assert batches["2"]["clips_per_second"] > 0


def test_pytorch_compiles_for_each_batch_by_itself(monkeypatch):
    import torch

    asked = []
    chain = TorchChain("random:tiny", "cpu")
    chain.compiled = True
    monkeypatch.setattr(torch, "compile", lambda module, **words: asked.append(words) or module)
    monkeypatch.setattr(torch._dynamo, "reset", lambda: asked.append("reset"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    chain._fast(None)
    chain.forget_compiled()
    assert asked == [{"dynamic": False}, "reset"]
