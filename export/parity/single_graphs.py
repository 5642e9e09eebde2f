"""Graphs ``clip``, ``cnn`` and ``keyframes`` compared with their libraries' own networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ...runtime.bundle.manifest import FramePreprocessing, RetrievedCaption, SpatioTemporal
from ..networks.clip import encode_captions, image_vectors
from ..networks.frame_bytes import normalise_bytes
from ..networks.reference import VideoNetwork
from ..precision.calibration import seeded_frames
from .comparison import BATCHES, SEED, Comparison, PartParity, pictures, summarise
from .written_graphs import WrittenGraphs

if TYPE_CHECKING:
    from torch import nn


def compare_clip(
    model: Any,
    tokens: Sequence[Sequence[int]],
    written: WrittenGraphs,
    vlm: RetrievedCaption,
) -> PartParity:
    """Graph ``clip`` compared with ``model``; ``tokens``: the captions' ids.

    Raises DataError (``parity_failed``) when it is further off than comparison.py allows, or retrieves another
    caption in fp32. In other precisions the rows of equal captions are compared.
    """
    import torch

    graph = written.open("clip")
    captions = encode_captions(model, tokens)
    runs, retrieved, equal = [], 0, 0
    for batch in BATCHES:
        rgb, rule = pictures(batch, vlm.preprocessing.size), vlm.preprocessing
        image = image_vectors(model, torch.from_numpy(normalise_bytes(rgb, rule)))
        nearest = torch.nn.functional.cosine_similarity(image[:, None], captions[None], dim=-1).argmax(-1)
        got = graph.run({"pixels": written.frames("clip", rgb, rule)})
        same = got["caption_index"] == nearest.numpy()
        if written.precision("clip") == "fp32" and not same.all():
            raise DataError(
                f"captions {got['caption_index'].tolist()} are retrieved, PyTorch retrieves {nearest.tolist()}",
                fix="export in a higher precision (--precision fp32)",
                code="parity_failed",
            )
        retrieved += batch
        equal += int(same.sum())
        expected = {"vector": torch.cat([image, captions[nearest]], dim=-1).numpy()}
        # The image's half of every vector; the whole where the captions are the same.
        half = expected["vector"].shape[1] // 2
        runs.append(Comparison("clip", batch, _half(got, half), _half(expected, half)))
        if same.any():
            runs.append(
                Comparison("clip", batch, {"vector": got["vector"][same]}, {"vector": expected["vector"][same]})
            )
    return PartParity({"clip": summarise(written, "clip", runs)}, retrieved, equal)


def _half(vectors: Mapping[str, npt.NDArray[np.float32]], width: int) -> dict[str, npt.NDArray[np.float32]]:
    return {"image": vectors["vector"][:, :width]}


def compare_cnn(
    network: VideoNetwork, net: nn.Module, written: WrittenGraphs, cnn: SpatioTemporal, name: str = "cnn"
) -> PartParity:
    """Graph ``cnn``, or the one of that name, compared with ``net``.

    Raises DataError (``parity_failed``) when it is further off than comparison.py allows.
    """
    graph, rule = written.open(name), cnn.preprocessing
    runs = []
    for batch in BATCHES:
        rgb = seeded_frames(SEED, clips=batch, frames=cnn.frames, size=rule.size)
        values = normalise_bytes(rgb.reshape(-1, *rgb.shape[2:]), rule)
        clips = values.reshape(batch, cnn.frames, *values.shape[1:]).swapaxes(1, 2)
        expected = {"embedding": network.reference(net, np.ascontiguousarray(clips))}
        got = graph.run({"frames": written.frames(name, rgb, rule)}, ["embedding"])
        runs.append(Comparison(name, batch, got, expected))
    return PartParity({name: summarise(written, name, runs)})


def compare_keyframes(net: nn.Module, written: WrittenGraphs, rule: FramePreprocessing) -> PartParity:
    """Graph ``keyframes`` compared with the first layers of Slow, ``net``; raises as ``compare_cnn``."""
    import torch

    graph = written.open("keyframes")
    whole: Any = net
    runs = []
    for batch in BATCHES:
        rgb = seeded_frames(SEED, clips=1, frames=batch, size=rule.size)[0]
        video = torch.from_numpy(normalise_bytes(rgb, rule)).transpose(0, 1)[None]
        with torch.no_grad():
            maps = whole.blocks[2](whole.blocks[1](whole.blocks[0](video)))
        expected = {"features": maps.mean(dim=(3, 4))[0].T.numpy()}
        got = graph.run({"frames": written.frames("keyframes", rgb, rule)})
        runs.append(Comparison("keyframes", batch, got, expected))
    return PartParity({"keyframes": summarise(written, "keyframes", runs)})
