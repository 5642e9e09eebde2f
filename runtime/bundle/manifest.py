"""``bundle.json``: the contents of a bundle, the meaning of its embeddings, and the parity figures of its export.

Reading it needs no runtime and no numpy. An extractor has a vision-language part, a spatio-temporal part, or both;
``Manifest.needed_graphs`` lists the graphs that it runs. The graphs' tensor names are defined here for the exporter
and the runtime (records of graphs, parity and engines: graph_records.py):

``vision``     pixels u8[batch, S, S, 3] -> per decoder layer NN:
               cross_key_NN   cache[batch, heads, head_dim, patches] (transposed, scaled by head_dim**-0.5)
               cross_value_NN cache[batch, heads, patches, head_dim]
``text``       token_ids i64[batch, tokens], positions i64[batch, tokens],
               mask f32[batch, 1, tokens, past + tokens] (added to the attention scores: 0 keeps, MASKED_SCORE drops),
               past_key_NN, past_value_NN cache[batch, heads, past, head_dim], cross_key_NN, cross_value_NN
               -> next_token i64[batch] (the likeliest after the last token, the lowest id of equals),
               logits f32[batch, vocabulary] of the last token (to be compared; a runtime fetches next_token),
               hidden f32[batch, tokens, width],
               present_key_NN, present_value_NN cache[batch, heads, past, head_dim]: the last ``past`` positions of
               past and new tokens together, a window that slides
``words``      token_ids i64[batch, tokens], positions i64[batch, tokens], mask f32[batch, 1, 1, tokens]
               -> hidden f32[batch, tokens, width]: the text alone, no image
``clip``       pixels u8[batch, S, S, 3] -> vector f32[batch, 2 w] (the image's vector, then that of the
               caption nearest to it), caption_index i64[batch]
``cnn``        frames u8[batch, K, S, S, 3] -> embedding f32[batch, width]
``cnn2``       the same of a second network, whose embedding follows that of ``cnn``
``keyframes``  frames u8[frames, S, S, 3], or f32[frames, 3, S, S] normalised by the host where its frames are no whole
               bytes -> features f32[frames, C]; in every bundle, but where an encoder of the exporter's own is alone
               and its frames are spread evenly

``cache`` is the type of the text graph's keys and values: f32, or f16 or bf16 where that graph is in half precision.
Frames are RGB, resized and cropped; a graph normalises them itself, in f32: (value / 255 - mean) / std
(docs/decisions/032-frames-cross-as-bytes.md).

A bundle of schema 3 differs in three ways. Its frames are f32, normalised by the host: [batch, 3, S, S],
``cnn`` [batch, 3, K, S, S], ``keyframes`` [frames, 3, S, S]. Its ``text`` has no next_token, and its present_* hold
past + tokens positions. Its caches are f32 in every precision. A runtime looks at the tensors, not at the schema.

A bundle of schema 5 has an encoder of the exporter's own (docs/decisions/045-any-frozen-encoder.md); all others are
still written as schema 4. Fields that only those have are ``UNSET`` elsewhere, and so in no fingerprint of others.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from .encoder_record import EncoderRecord
from .graph_records import (
    Calibration,
    FileBytes,
    Frames,
    Graph,
    Level,
    Number,
    Parity,
    Pixels,
    Record,
    Sha256,
    Text,
    TokenId,
    Width,
    precision_label,
)

SCHEMA = 4  # that an export writes
ENCODER_SCHEMA = 5  # that it writes with an encoder of the exporter's own
SCHEMAS = (3, SCHEMA, ENCODER_SCHEMA)  # that are read
MANIFEST_FILE = "bundle.json"
TOKENIZER_FILE = "tokenizer.json"
MASKED_SCORE = -1e4  # added to an attention score to drop it; fits fp16

CrossAttention = Literal["bidirectional", "causal-last", "causal-first"]
AttentionMode = Literal["bidirectional", "causal-last", "causal-first", "text"]
Network = Literal["slow", "i3d", "resnet3d", "videomae", "encoder"]
FrameChoice = Literal["keyframes", "uniform"]
KEYFRAMES_SOURCE = "keyframes"  # in Manifest.sources where the bundle holds only Slow's first layers


class FramePreprocessing(Record, frozen=True):
    """RGB frame -> float32[3, size, size]: resize, crop, (value / 255 - mean) / std.

    ``filter``: ``bicubic`` and ``bilinear-pillow`` as Pillow (antialiased, to whole byte values);
    ``bilinear`` as torch's interpolate (not antialiased), ``bilinear-bytes`` the same, rounded to
    whole byte values as torchvision does with byte tensors.
    """

    size: Pixels
    fit: Literal["stretch", "crop"]  # to size x size whatever the aspect; or short side to size, centre crop
    filter: Literal["bicubic", "bilinear", "bilinear-pillow", "bilinear-bytes"]
    mean: tuple[Level, Level, Level]
    std: tuple[Level, Level, Level]
    resized: tuple[Pixels, Pixels] | None = None  # height and width before the centre crop, whatever the aspect
    short_side: Pixels | UnsetType = UNSET  # before the centre crop of ``crop``; UNSET: as ``size``

    @property
    def gives_bytes(self) -> bool:
        """True when the resized values are whole bytes: frames may then enter a graph as uint8."""
        return self.filter != "bilinear"


class KeyframeRule(Record, frozen=True):
    """k-means over per-frame features of uniform candidates (paper eq. 3; docs/paper.md, reading 4)."""

    count: Frames  # K of the vision-language part; a spatio-temporal part may have its own number
    candidates: Frames
    preprocessing: FramePreprocessing
    feature_width: Width
    space: Text  # layer of the features, for people: "slow stem to res3, mean"


class CaptionRule(Record, frozen=True):
    """Greedy decoding from ``start_id`` until ``end_id`` or ``max_new_tokens``."""

    start_id: TokenId
    end_id: TokenId
    pad_id: TokenId
    cls_id: TokenId
    sep_id: TokenId
    max_new_tokens: Annotated[int, Meta(ge=0, le=512)]


class TextShape(Record, frozen=True):
    layers: Annotated[int, Meta(ge=1, le=96)]  # "00" to "95" in the tensors' names
    heads: Annotated[int, Meta(ge=1, le=256)]
    head_dim: Annotated[int, Meta(ge=1, le=1024)]
    width: Width
    vocabulary: TokenId


def layer_names(prefix: str, layers: int) -> tuple[str, ...]:
    """Return the names of per-layer tensors: ``cross`` gives cross_key_00, cross_value_00, cross_key_01, …"""
    return tuple(f"{prefix}_{part}_{layer:02d}" for layer in range(layers) for part in ("key", "value"))


class VisionLanguage(Record, frozen=True, tag="vision-language"):
    """Graphs ``vision`` and ``text``: caption of a frame, and caption and frame as one vector
    (docs/paper.md, reading 1).

    ``attention_mode`` is ``reading`` in the JSON: ``bidirectional``, ``causal-last`` and ``causal-first`` encode the
    caption with the frame through graph ``text``; ``text`` encodes the caption alone through graph ``words``.
    """

    preprocessing: FramePreprocessing
    text: TextShape
    caption: CaptionRule
    attention_mode: AttentionMode = msgspec.field(name="reading")
    width: Width  # of the embedding
    captioned_frames: Frames = 1  # captioned keyframes; their embeddings are averaged


class RetrievedCaption(Record, frozen=True, tag="retrieved-caption"):
    """Graph ``clip``: a frame's vector and that of the nearest of ``captions`` (docs/paper.md, reading 10).

    Captions were written beforehand and encoded once: their vectors are constants of the graph.
    Vectors are the towers' projections, not normalised; nearest is by cosine.
    """

    preprocessing: FramePreprocessing
    captions: tuple[Text, ...]
    tokens_sha256: Text  # of the captions' token ids: another tokenizer gives other vectors
    width: Width  # of the embedding: image and caption together
    captioned_frames: Frames = 1


class SpatioTemporal(Record, frozen=True):
    """Graph ``cnn``: the embedding of several frames in time order."""

    network: Network
    preprocessing: FramePreprocessing
    frames: Frames
    choice: FrameChoice  # as many clusters as frames; or frames spread evenly over the candidates
    width: Width  # of the embedding
    pooling: Text  # for people: "mean of the head's sliding windows"
    encoder: EncoderRecord | UnsetType = UNSET  # of network "encoder"


class Source(Record, frozen=True):
    """Origin of a network's weights."""

    name: Text  # as given: hub id, path's last part, random:full, random:tiny
    revision: Text
    weights_sha256: Text  # over names, dtypes, shapes and values of all tensors, in name order
    parameters: Number  # as the paper's Table 1 counts them
    parameters_tied: Number  # each stored value once
    licence: Text


class FileEntry(Record, frozen=True):
    sha256: Sha256
    bytes: FileBytes


class Manifest(Record, frozen=True):
    schema: int
    created: Text  # UTC, RFC 3339
    extractor: Text  # "blip+slow"
    backend: Text  # form of its ONNX graphs: "onnx" or "tensorrt"; engines are listed by graph
    extraction_seed: Number
    graphs: Annotated[dict[Text, Graph], Meta(max_length=32)]
    keyframes: KeyframeRule
    vlm: VisionLanguage | RetrievedCaption | None
    cnn: SpatioTemporal | None
    sources: Annotated[
        dict[Text, Source], Meta(max_length=32)
    ]  # by network: "blip", "slow", …; KEYFRAMES_SOURCE where Slow is not one of them
    files: Annotated[dict[str, FileEntry], Meta(max_length=1000)]  # every file but the manifest itself
    parity: Parity
    versions: Annotated[dict[Text, Text], Meta(max_length=100)]
    calibration: Calibration | None = None  # None where no activation has a fixed int8 scale
    notes: Annotated[tuple[Text, ...], Meta(max_length=100)] = ()  # on precisions and int8 calibration
    tf32: bool = False  # engines may use TF32 where no option says otherwise: the bundle's precision is the default
    cnn2: SpatioTemporal | UnsetType = UNSET  # an encoder of the exporter's own next to ``cnn``

    @property
    def spatio_temporal(self) -> dict[str, SpatioTemporal]:
        """The networks that see several frames, by graph, in the order of their vectors in the embedding."""
        found = {"cnn": self.cnn, "cnn2": self.cnn2}
        return {graph: part for graph, part in found.items() if isinstance(part, SpatioTemporal)}

    @property
    def cnn_width(self) -> int:
        """Dimensions of the vectors of ``spatio_temporal`` together; 0 without any."""
        return sum(part.width for part in self.spatio_temporal.values())

    @property
    def width(self) -> int:
        """Dimensions of the embedding: 2816 for BLIP + Slow."""
        return (self.vlm.width if self.vlm is not None else 0) + self.cnn_width

    @property
    def has_keyframes(self) -> bool:
        """False for an encoder of the exporter's own alone, with frames that are spread evenly."""
        parts = self.spatio_temporal.values()
        needed = self.vlm is not None or any(part.choice == "keyframes" for part in parts)
        return needed or any(part.encoder is UNSET for part in parts)

    @property
    def needed_graphs(self) -> tuple[str, ...]:
        """The graphs that this extractor runs, in order."""
        names = ["keyframes"] if self.has_keyframes else []
        if isinstance(self.vlm, VisionLanguage):
            names += ["vision", "text", *(["words"] if self.vlm.attention_mode == "text" else [])]
        elif self.vlm is not None:
            names.append("clip")
        return (*names, *self.spatio_temporal)

    @property
    def precision(self) -> str:
        """Precision of the graphs that make embeddings: ``int8``, or ``cnn=int8,text=fp32`` where they differ.

        Part of a feature's key in the store. Graph ``keyframes`` is fp32 in every bundle: it decides which frames are
        used.
        """
        return precision_label(
            {name: self.graphs[name].precision for name in self.needed_graphs if name != "keyframes"}
        )

    @property
    def needs_tokenizer(self) -> bool:
        """True when captions are generated, and TOKENIZER_FILE is in the bundle."""
        return isinstance(self.vlm, VisionLanguage)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides what an embedding means; not of precision, backend, engines or parity.

        Features of two bundles may be mixed exactly when their fingerprints are equal.
        """
        meaning = {
            "extractor": self.extractor,
            "extraction_seed": self.extraction_seed,
            "keyframes": self.keyframes,
            "vlm": self.vlm,
            "cnn": self.cnn,
            "weights": {name: source.weights_sha256 for name, source in self.sources.items()},
            "tokenizer": self.files[TOKENIZER_FILE].sha256 if self.needs_tokenizer else None,
            **({"cnn2": self.cnn2} if self.cnn2 is not UNSET else {}),
        }
        return hashlib.sha256(msgspec.json.encode(meaning, order="deterministic")).hexdigest()


def encode_manifest(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2) + b"\n"
