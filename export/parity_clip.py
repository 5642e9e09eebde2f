"""Graph ``clip`` beside Hugging Face's ``CLIPModel``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError
from ..runtime.bundle.manifest import RetrievedCaption
from ..runtime.bundle.records import GraphParity
from .clip import encode_captions, image_vectors
from .parity import BATCHES, Comparison, pictures, summarise
from .precision.written import WrittenGraphs


@dataclass(frozen=True)
class ClipParity:
    graph: GraphParity
    captions: int  # retrieved
    captions_equal: int  # as PyTorch does


def compare_clip(
    model: Any,
    tokens: Sequence[Sequence[int]],
    written: WrittenGraphs,
    spec: RetrievedCaption,
) -> ClipParity:
    """Graph ``clip`` beside ``model``; ``tokens``: the captions' ids.

    Raises DataError (``parity_failed``) when it is further off than limits.py allows, or retrieves another
    caption in fp32. In other precisions the rows of equal captions are compared.
    """
    import torch

    graph = written.open("clip")
    captions = encode_captions(model, tokens)
    runs, retrieved, equal = [], 0, 0
    for batch in BATCHES:
        pixels = pictures(batch, spec.preprocessing)
        image = image_vectors(model, torch.from_numpy(pixels))
        nearest = torch.nn.functional.cosine_similarity(image[:, None], captions[None], dim=-1).argmax(-1)
        got = graph.run({"pixels": pixels})
        same = got["caption_index"] == nearest.numpy()
        if written.precision("clip") == "fp32" and not same.all():
            raise DataError(
                f"captions {got['caption_index'].tolist()} are retrieved, PyTorch retrieves {nearest.tolist()}",
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
    return ClipParity(summarise(written, "clip", runs), retrieved, equal)


def _half(vectors: Mapping[str, npt.NDArray[np.float32]], width: int) -> dict[str, npt.NDArray[np.float32]]:
    return {"image": vectors["vector"][:, :width]}
