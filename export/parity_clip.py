"""Graph ``clip`` beside Hugging Face's ``CLIPModel``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import DataError
from ..runtime.manifest import RetrievedCaption
from ..runtime.parity_records import GraphParity
from ..runtime.session import open_session
from .clip import encode_captions, image_vectors
from .parity import BATCHES, Comparison, pictures, summarise


@dataclass(frozen=True)
class ClipParity:
    graph: GraphParity
    captions: int  # retrieved, all as PyTorch does


def compare_clip(
    model: Any,
    tokens: Sequence[Sequence[int]],
    folder: Path,
    spec: RetrievedCaption,
    *,
    threads: int | None = None,
) -> ClipParity:
    """Graph ``clip`` in ``folder`` beside ``model``; ``tokens``: the captions' ids.

    Raises DataError (``parity_failed``) when it is further off than LIMIT or retrieves another caption.
    """
    import torch

    graph = open_session(folder / "clip.onnx", threads=threads)
    captions = encode_captions(model, tokens)
    runs, retrieved = [], 0
    for batch in BATCHES:
        pixels = pictures(batch, spec.preprocessing)
        image = image_vectors(model, torch.from_numpy(pixels))
        nearest = torch.nn.functional.cosine_similarity(image[:, None], captions[None], dim=-1).argmax(-1)
        got = graph.run({"pixels": pixels})
        if got["caption_index"].tolist() != nearest.tolist():
            raise DataError(
                f"captions {got['caption_index'].tolist()} are retrieved, PyTorch retrieves {nearest.tolist()}",
                code="parity_failed",
            )
        retrieved += batch
        expected = {"vector": torch.cat([image, captions[nearest]], dim=-1).numpy()}
        runs.append(Comparison("clip", batch, {"vector": got["vector"]}, expected))
    return ClipParity(summarise("clip", runs), retrieved)
