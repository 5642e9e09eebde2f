"""What ``bundle.json`` says of how near the graphs are to PyTorch, and to their own fp32 form."""

from __future__ import annotations

from .graph_records import Record


class GraphParity(Record, frozen=True):
    """Difference of one graph to PyTorch's fp32 over the batches compared."""

    max_abs: float
    max_rel: float  # max |a - b| / max |b| per output, the largest of the outputs
    min_cosine: float  # of a row of any output: what belongs to one clip, as one vector
    batches: tuple[int, ...]
    ran_on: str  # who computed the graph: "ONNX Runtime CPU", …


class Cosine(Record, frozen=True):
    smallest: float
    mean: float


class ChainParity(Record, frozen=True):
    """The whole chain of a bundle beside the same chain in fp32, on the calibration clips.

    The embedding is compared given the fp32 caption: near-ties between captions are counted apart.
    """

    clips: int
    embeddings: dict[str, Cosine]  # by part: "vlm", "cnn"
    captions_equal: int
    captions: int
    ran_on: str


class Parity(Record, frozen=True):
    graphs: dict[str, GraphParity]
    captions_equal: int  # to PyTorch's, of ``captions``
    captions: int  # compared
    chain: ChainParity | None = None  # None where all graphs are fp32: PyTorch is the measure


class Calibration(Record, frozen=True):
    """The clips on which the ranges of int8 activations were found."""

    source: str  # "seeded" or "own clips"
    clips: int
