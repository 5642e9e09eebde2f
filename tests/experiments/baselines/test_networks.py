"""Networks of KD and ActionCLIP: sizes, and one batch learnt by heart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flamest.experiments.baselines.clip_towers import build_video_text, load_towers
from flamest.experiments.baselines.losses import class_scores, contrastive_loss
from flamest.experiments.baselines.networks import as_input, build_network, count_parameters

SIDE = 32


def test_the_students_have_table_1s_parameters():
    with torch.device("meta"):
        assert count_parameters(build_network("student", "full", "2d", 1000, seed=0)) == 11_689_512
        assert count_parameters(build_network("student", "full", "3d", 400, seed=0)) == 33_371_472


@pytest.mark.parametrize(("role", "dimensions"), [("teacher", "2d"), ("assistant", "2d"), ("student", "3d")])
def test_a_network_can_overfit_one_batch(role, dimensions):
    net = build_network(role, "small", dimensions, 3, seed=1)
    random = np.random.Generator(np.random.PCG64(0))
    seen = as_input(
        random.integers(0, 256, size=(6, 2, SIDE, SIDE, 3), dtype=np.uint8), 0.45, 0.225, torch.device("cpu")
    )
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(30):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(seen), y).backward()
        optimiser.step()
    assert net(seen).argmax(1).tolist() == y.tolist()


def test_actionclip_can_overfit_one_batch():
    net = build_video_text(load_towers("random", seed=0), "mean", frames=1, seed=0)
    pixels, y = torch.randn(3, 1, 3, 96, 96, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    sentences = ["a ball", "a box crossing", "the star"]
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(20):
        optimiser.zero_grad()
        contrastive_loss(net.clips(pixels), net.texts(sentences), y, net.scale(), sharpness=10.0).backward()
        optimiser.step()
    assert class_scores(net.clips(pixels), net.texts(sentences)[None], net.scale()).argmax(1).tolist() == y.tolist()


def test_only_the_transformer_depends_on_the_order_of_frames():
    towers = load_towers("random", seed=0)
    pixels = torch.randn(1, 3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    for fusion, sees in (("mean", False), ("transformer", True)):
        net = build_video_text(towers, fusion, frames=3, seed=0).eval()
        with torch.no_grad():
            same = torch.allclose(net.clips(pixels), net.clips(pixels.flip(1)), atol=1e-6)
        assert same is not sees
