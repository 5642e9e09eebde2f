"""Graphs ``cnn`` and ``keyframes`` beside the libraries' own networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..runtime.bundle.records import GraphParity
from .architectures import VideoForm
from .calibration import calibration_clips
from .parity import BATCHES, SEED, Comparison, summarise
from .precision.written import WrittenGraphs
from .video_networks import VideoNetwork

if TYPE_CHECKING:
    from torch import nn


def compare_cnn(network: VideoNetwork, net: nn.Module, written: WrittenGraphs, form: VideoForm) -> GraphParity:
    """Graph ``cnn`` beside ``net``.

    Raises DataError (``parity_failed``) when it is further off than limits.py allows.
    """
    graph = written.open("cnn")
    runs = []
    for batch in BATCHES:
        clips = calibration_clips(SEED, clips=batch, frames=form.frames, size=form.crop, mean=0.45, std=0.225)
        frames = clips.astype(np.float32)
        expected = {"embedding": network.reference(net, frames)}
        runs.append(Comparison("cnn", batch, graph.run({"frames": frames}), expected))
    return summarise(written, "cnn", runs)


def compare_keyframes(net: nn.Module, written: WrittenGraphs, form: VideoForm) -> GraphParity:
    """Graph ``keyframes`` beside the first layers of Slow, ``net``; raises as ``compare_cnn``."""
    import torch

    graph = written.open("keyframes")
    whole: Any = net
    runs = []
    for batch in BATCHES:
        clip = calibration_clips(SEED, clips=1, frames=batch, size=form.keyframe_size, mean=0.45, std=0.225)
        video = clip.astype(np.float32)
        with torch.no_grad():
            maps = whole.blocks[2](whole.blocks[1](whole.blocks[0](torch.from_numpy(video))))
        expected = {"features": maps.mean(dim=(3, 4))[0].T.numpy()}
        runs.append(Comparison("keyframes", batch, graph.run({"frames": video[0].swapaxes(0, 1)}), expected))
    return summarise(written, "keyframes", runs)
