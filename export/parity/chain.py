"""The whole chain of a bundle compared with the same chain in fp32: the cost of precision in embeddings and captions.

The reference is PyTorch: the modules that the fp32 graphs are exported from, themselves compared with
the libraries' networks in every fp32 export.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ...runtime.backends.host_rows import HostRows
from ...runtime.backends.session import NO_ROWS, Feed, Rows, Session, Shape, Value, on_host, wanted_outputs
from ...runtime.bundle.graph_records import ChainParity, Cosine, Precision
from ...runtime.bundle.limits import COSINES
from ...runtime.bundle.manifest import FramePreprocessing, RetrievedCaption, VisionLanguage
from ...runtime.similarity import row_cosines
from ...runtime.vision_language import VisionLanguageModel
from ..graphs.spec import GraphSpec
from ..precision.calibration import CalibrationClips
from .written_graphs import WrittenGraphs


@dataclass(frozen=True)
class ChainPart:
    """One part's share of a ChainParity: a cosine per clip, and its captions."""

    embedding: str  # that the part makes: "vlm", "cnn" or "cnn2"
    precisions: tuple[Precision, ...]  # of its graphs
    cosines: npt.NDArray[np.float64]  # [clips]
    ran_on: tuple[str, ...]
    captions_equal: int = 0
    captions: int = 0


@dataclass(frozen=True, eq=False)
class _Held:
    array: npt.NDArray[Any]

    def numpy(self) -> npt.NDArray[Any]:
        return self.array


@dataclass(frozen=True, eq=False)
class ModuleSession:
    """The module of a graph run by PyTorch, as a Session."""

    spec: GraphSpec
    where: str = "PyTorch"
    computes_on_host: bool = True
    largest_batch: int | None = None
    inputs: tuple[str, ...] = field(init=False)
    outputs: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(tensor.name for tensor in self.spec.inputs))
        object.__setattr__(self, "outputs", tuple(tensor.name for tensor in self.spec.outputs))

    def value(self, of: Feed) -> Value:
        return _Held(on_host(of))

    def borrow(self, array: npt.NDArray[Any]) -> Value:
        return _Held(array)

    def close(self) -> None:
        """Nothing: its memory is the host's."""

    def rows(self, input_name: str, shape: Shape) -> Rows:
        (dtype,) = (tensor.dtype for tensor in self.spec.inputs if tensor.name == input_name)
        return HostRows(shape, dtype, borrow=self.borrow)

    def run(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
        import torch

        with torch.no_grad():
            made = self.spec.whole_module()(*(torch.from_numpy(np.array(on_host(feeds[name]))) for name in self.inputs))
        found = dict(zip(self.outputs, made if isinstance(made, tuple) else (made,), strict=True))
        return {name: found[name].numpy() for name in wanted_outputs(self, outputs)}

    def run_values(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None, *, into: Mapping[str, Rows] = NO_ROWS
    ) -> dict[str, Value]:
        return {name: _Held(array) for name, array in self.run(feeds, outputs).items()}


def compare_captioner(
    specs: Sequence[GraphSpec], written: WrittenGraphs, vlm: VisionLanguage, clips: CalibrationClips
) -> ChainPart:
    """Graphs ``vision``, ``text`` and, where there is one, ``words``: a frame of each clip."""
    reference = _captioner({spec.name: ModuleSession(spec) for spec in specs}, vlm)
    deployed = _captioner({spec.name: written.open(spec.name) for spec in specs}, vlm)
    cosines, equal = [], 0
    for rgb in clips.read(vlm.preprocessing, 1):
        seen = reference.encode_image(rgb)
        seen_deployed = deployed.encode_image(written.frames("vision", rgb, vlm.preprocessing))
        captions = reference.caption_ids(seen)
        equal += captions == deployed.caption_ids(seen_deployed)
        embeddings = deployed.embed(seen_deployed, captions), reference.embed(seen, captions)
        cosines.append(float(row_cosines(*embeddings)[0]))
    return _chain_part("vlm", specs, written, cosines, equal, len(cosines))


def _captioner(sessions: Mapping[str, Session], vlm: VisionLanguage) -> VisionLanguageModel:
    return VisionLanguageModel(sessions["vision"], sessions["text"], vlm, words=sessions.get("words"))


def compare_retriever(
    spec: GraphSpec, written: WrittenGraphs, vlm: RetrievedCaption, clips: CalibrationClips
) -> ChainPart:
    """Graph ``clip``: the frame's own half of the vector, and which caption it retrieves."""
    reference, deployed = ModuleSession(spec), written.open(spec.name)
    cosines, equal = [], 0
    for rgb in clips.read(vlm.preprocessing, 1):
        want = reference.run({"pixels": rgb})
        got = deployed.run({"pixels": written.frames(spec.name, rgb, vlm.preprocessing)})
        equal += int(want["caption_index"][0]) == int(got["caption_index"][0])
        half = want["vector"].shape[1] // 2
        cosines.append(float(row_cosines(got["vector"][:, :half], want["vector"][:, :half])[0]))
    return _chain_part("vlm", (spec,), written, cosines, equal, len(cosines))


def compare_spatio_temporal(
    spec: GraphSpec, written: WrittenGraphs, rule: FramePreprocessing, clips: CalibrationClips
) -> ChainPart:
    """Graph ``cnn`` or ``cnn2``: as many frames of each clip as it reads."""
    reference, deployed = ModuleSession(spec), written.open(spec.name)
    cosines = []
    for rgb in clips.read(rule, int(spec.inputs[0].shape[1])):
        want = reference.run({"frames": rgb[None]})["embedding"]
        got = deployed.run({"frames": written.frames(spec.name, rgb[None], rule)})["embedding"]
        cosines.append(float(row_cosines(got, want)[0]))
    return _chain_part(spec.name, (spec,), written, cosines)


def _chain_part(
    embedding: str,
    specs: Sequence[GraphSpec],
    written: WrittenGraphs,
    cosines: list[float],
    captions_equal: int = 0,
    captions: int = 0,
) -> ChainPart:
    names = [spec.name for spec in specs]
    precisions, ran_on = tuple(map(written.precision, names)), tuple(map(written.ran_on, names))
    return ChainPart(embedding, precisions, np.asarray(cosines), ran_on, captions_equal, captions)


def sum_up(parts: Sequence[ChainPart]) -> ChainParity | None:
    """The figures of all parts together; None when no part was compared.

    Raises DataError (``parity_failed``) when an embedding is further from fp32 than its least precise
    graph may be.
    """
    if not parts:
        return None
    for part in parts:
        smallest, limit = float(part.cosines.min()), min(COSINES[precision] for precision in part.precisions)
        if not smallest >= limit:
            raise DataError(
                f"embedding '{part.embedding}': cosine {smallest:.5f} to fp32 on a calibration clip, "
                f"expected at least {limit} in {'+'.join(dict.fromkeys(part.precisions))}",
                fix="choose another precision for its graphs: --precision GRAPH=fp32, or calibrate on your own clips: "
                "--calibration DIR",
                code="parity_failed",
            )
    return ChainParity(
        clips=max(len(part.cosines) for part in parts),
        embeddings={part.embedding: Cosine(float(part.cosines.min()), float(part.cosines.mean())) for part in parts},
        captions_equal=sum(part.captions_equal for part in parts),
        captions=sum(part.captions for part in parts),
        ran_on="; ".join(dict.fromkeys(where for part in parts for where in part.ran_on)),
    )
