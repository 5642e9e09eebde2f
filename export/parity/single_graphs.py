"""Graphs ``clip``, ``cnn`` and ``keyframes`` compared with their libraries' own networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ...runtime.bundle.manifest import RetrievedCaption
from ..networks.clip import encode_captions, image_vectors
from ..networks.reference import VideoForm, VideoNetwork
from ..precision.calibration import calibration_clips
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
        pixels = pictures(batch, vlm.preprocessing)
        image = image_vectors(model, torch.from_numpy(pixels))
        nearest = torch.nn.functional.cosine_similarity(image[:, None], captions[None], dim=-1).argmax(-1)
        got = graph.run({"pixels": pixels})
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


def compare_cnn(network: VideoNetwork, net: nn.Module, written: WrittenGraphs, form: VideoForm) -> PartParity:
    """Graph ``cnn`` compared with ``net``.

    Raises DataError (``parity_failed``) when it is further off than comparison.py allows.
    """
    graph = written.open("cnn")
    runs = []
    for batch in BATCHES:
        clips = calibration_clips(SEED, clips=batch, frames=form.frames, size=form.crop, mean=0.45, std=0.225)
        frames = clips.astype(np.float32)
        expected = {"embedding": network.reference(net, frames)}
        runs.append(Comparison("cnn", batch, graph.run({"frames": frames}), expected))
    return PartParity({"cnn": summarise(written, "cnn", runs)})


def compare_keyframes(net: nn.Module, written: WrittenGraphs, form: VideoForm) -> PartParity:
    """Graph ``keyframes`` compared with the first layers of Slow, ``net``; raises as ``compare_cnn``."""
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
    return PartParity({"keyframes": summarise(written, "keyframes", runs)})
