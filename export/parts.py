"""The parts of a bundle: the graphs of each, its record in the manifest, and the comparisons that prove it.

An export makes a part from a loaded network, writes its graphs and compares them; ``flamest-export verify``
makes the same part from the manifest's record and compares the graphs that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from msgspec import UNSET, UnsetType

from ..base.errors import DataError, UsageError
from ..runtime.bundle.encoder_record import EncoderRecord
from ..runtime.bundle.graph_records import Parity
from ..runtime.bundle.manifest import (
    KEYFRAMES_SOURCE,
    AttentionMode,
    CaptionRule,
    FrameChoice,
    FramePreprocessing,
    KeyframeRule,
    RetrievedCaption,
    Source,
    SpatioTemporal,
    VisionLanguage,
)
from .graphs.spec import (
    CANDIDATES,
    MAX_NEW_TOKENS,
    GraphSpec,
    clip_spec,
    cnn_spec,
    keyframe_spec,
    text_spec,
    vision_spec,
    words_spec,
)
from .networks.blip import text_shape
from .networks.clip import encode_captions, hash_tokens, read_captions, tokenize_captions
from .networks.preprocessing import PYTORCHVIDEO_MEAN, PYTORCHVIDEO_STD, blip_frames, keyframe_candidates
from .networks.slow_i3d import FRAMES, keyframe_width
from .parity.blip import compare_blip
from .parity.chain import ChainPart, compare_captioner, compare_retriever, compare_spatio_temporal, sum_up
from .parity.comparison import PartParity
from .parity.single_graphs import compare_clip, compare_cnn, compare_keyframes
from .parity.written_graphs import WrittenGraphs
from .precision.calibration import CalibrationClips
from .precision.feeds import captioner_feeds, frame_feeds
from .precision.ranges import Feeds
from .weights.loading import LoadedBlip, LoadedClip, LoadedVideo, describe_weights
from .weights.tokenizer import token_id

if TYPE_CHECKING:
    from torch import nn
    from transformers import BlipForConditionalGeneration

Record = TypeVar("Record")  # of the manifest


@dataclass(frozen=True, eq=False)
class Part(Generic[Record]):
    """One network of a bundle."""

    title: str  # for people
    record: Record
    sources: Mapping[str, Source]  # for the manifest
    specs: tuple[GraphSpec, ...]
    compare: Callable[[WrittenGraphs], PartParity]  # with the library's network
    compare_chain: Callable[[WrittenGraphs, CalibrationClips], ChainPart] | None  # with the same chain in fp32
    # The inputs of the graphs that are named, from clips; None for a part that is fp32 in every bundle.
    feeds: Callable[[CalibrationClips, Collection[str]], dict[str, list[Feeds]]] | None


@dataclass(frozen=True)
class ComparedPart:
    """Figures of a part; ``chain`` is None where all its graphs are fp32."""

    parity: PartParity
    chain: ChainPart | None = None


def compare_part(part: Part[Any], written: WrittenGraphs, clips: CalibrationClips) -> ComparedPart:
    """Compare the written graphs of ``part`` with PyTorch, and the whole chain with fp32 where one is lowered."""
    parity = part.compare(written)
    lowered = any(written.precision(spec.name) != "fp32" for spec in part.specs)
    chain = part.compare_chain(written, clips) if lowered and part.compare_chain is not None else None
    return ComparedPart(parity, chain)


def total_parity(parts: Sequence[ComparedPart]) -> Parity:
    """The manifest's parity figures; raises DataError (``parity_failed``) as ``sum_up``."""
    return Parity(
        graphs={name: figures for part in parts for name, figures in part.parity.graphs.items()},
        captions_equal=sum(part.parity.captions_equal for part in parts),
        captions=sum(part.parity.captions for part in parts),
        chain=sum_up([part.chain for part in parts if part.chain is not None]),
    )


def captioner_part(loaded: LoadedBlip, vlm: VisionLanguage) -> Part[VisionLanguage]:
    """BLIP: graphs ``vision``, ``text`` and, where the caption is encoded alone, ``words``."""
    model = loaded.model
    words = (words_spec(model),) if vlm.attention_mode == "text" else ()
    specs = (vision_spec(model, vlm.preprocessing), text_spec(model, vlm.caption.max_new_tokens), *words)
    return Part(
        title="BLIP",
        record=vlm,
        sources={"blip": loaded.source},
        specs=specs,
        compare=lambda written: compare_blip(model, written, vlm),
        compare_chain=lambda written, clips: compare_captioner(specs, written, vlm, clips),
        feeds=lambda clips, graphs: captioner_feeds(specs, vlm, clips, graphs),
    )


def retriever_part(loaded: LoadedClip, vlm: RetrievedCaption) -> Part[RetrievedCaption]:
    """CLIP: graph ``clip``, which holds the vectors of the captions.

    Raises DataError (``other_weights``) when the tokenizer is not the one of the record.
    """
    model = loaded.model
    tokens = tokenize_captions(loaded.tokenizer, vlm.captions, model.config)
    if hash_tokens(tokens) != vlm.tokens_sha256:
        raise DataError(
            "--clip has another tokenizer than that of the export",
            fix="give the --clip weights that the bundle was exported with",
            code="other_weights",
        )
    spec = clip_spec(model, encode_captions(model, tokens), vlm.preprocessing)
    return Part(
        title="CLIP",
        record=vlm,
        sources={"clip": loaded.source},
        specs=(spec,),
        compare=lambda written: compare_clip(model, tokens, written, vlm),
        compare_chain=lambda written, clips: compare_retriever(spec, written, vlm, clips),
        feeds=lambda clips, _: frame_feeds(spec, vlm.preprocessing, clips),
    )


def keyframe_part(slow: LoadedVideo, rule: KeyframeRule, *, alone: bool) -> Part[KeyframeRule]:
    """The first layers of Slow: graph ``keyframes``, which is fp32 in every bundle.

    ``alone``: the bundle holds no more of Slow, so these layers are a source of their own.
    """
    net = slow.net
    sources = {KEYFRAMES_SOURCE: _first_layers(slow)} if alone else {}
    spec = keyframe_spec(net, rule.preprocessing)
    return Part(
        title="keyframe features",
        record=rule,
        sources=sources,
        specs=(spec,),
        compare=lambda written: compare_keyframes(net, written, rule.preprocessing),
        compare_chain=None,
        feeds=None,
    )


def spatio_temporal_part(loaded: LoadedVideo, cnn: SpatioTemporal, graph: str = "cnn") -> Part[SpatioTemporal]:
    """A spatio-temporal network: graph ``cnn``, or ``cnn2`` after one."""
    network, net = loaded.network, loaded.net
    spec = cnn_spec(network, net, loaded.form, cnn.preprocessing, graph)
    return Part(
        title=network.name,
        record=cnn,
        sources={network.name: loaded.source},
        specs=(spec,),
        compare=lambda written: compare_cnn(network, net, written, cnn, graph),
        compare_chain=lambda written, clips: compare_spatio_temporal(spec, written, cnn.preprocessing, clips),
        feeds=lambda clips, _: frame_feeds(spec, cnn.preprocessing, clips),
    )


def vision_language(
    model: BlipForConditionalGeneration, tokenizer: bytes, attention: AttentionMode, captioned_frames: int
) -> VisionLanguage:
    """The manifest's record of a captioner (docs/paper.md, reading 1: greedy, no prompt)."""
    config, shape = model.config, text_shape(model)
    return VisionLanguage(
        preprocessing=blip_frames(config.vision_config.image_size),
        text=shape,
        caption=CaptionRule(
            start_id=config.text_config.bos_token_id,
            end_id=config.text_config.sep_token_id,  # BLIP's captions end with [SEP], whatever eos_token_id says
            pad_id=config.text_config.pad_token_id,
            cls_id=token_id(tokenizer, "[CLS]"),
            sep_id=token_id(tokenizer, "[SEP]"),
            max_new_tokens=MAX_NEW_TOKENS,
        ),
        attention_mode=attention,
        width=shape.width,
        captioned_frames=captioned_frames,
    )


def retrieved_caption(loaded: LoadedClip, captions: Path | None, captioned_frames: int) -> RetrievedCaption:
    """The manifest's record of a CLIP, with the captions of that file or those that come with its weights."""
    texts = loaded.captions if captions is None else read_captions(captions)
    if not texts:
        raise UsageError(
            "CLIP retrieves captions that were written beforehand, and none are given",
            fix='write {"CLASS": "a caption of that class", …} into a file, and give it with --captions FILE.json',
        )
    config = loaded.model.config
    return RetrievedCaption(
        preprocessing=loaded.preprocessing,
        captions=texts,
        tokens_sha256=hash_tokens(tokenize_captions(loaded.tokenizer, texts, config)),
        width=2 * config.projection_dim,
        captioned_frames=captioned_frames,
    )


def keyframe_rule(slow: LoadedVideo) -> KeyframeRule:
    """The manifest's record of the choice of keyframes by the first layers of Slow."""
    return KeyframeRule(
        count=FRAMES,
        candidates=CANDIDATES,
        preprocessing=keyframe_candidates(slow.form.keyframe_size),
        feature_width=keyframe_width(slow.net),
        space="slow stem to res3, mean over positions",
    )


def evenly_spread(frames: int) -> KeyframeRule:
    """The manifest's record for frames that are spread evenly, where nothing chooses among them."""
    return KeyframeRule(
        count=frames,
        candidates=max(CANDIDATES, frames),
        preprocessing=FramePreprocessing(
            size=32, fit="crop", filter="bilinear-bytes", mean=PYTORCHVIDEO_MEAN, std=PYTORCHVIDEO_STD
        ),
        feature_width=0,
        space="none: frames spread evenly",
    )


def spatio_temporal(
    loaded: LoadedVideo, choice: FrameChoice, encoder: EncoderRecord | UnsetType = UNSET
) -> SpatioTemporal:
    """The manifest's record of a spatio-temporal network; ``encoder``: of one of the exporter's own."""
    return SpatioTemporal(
        network=loaded.network.name,
        preprocessing=loaded.preprocessing,
        frames=loaded.form.frames,
        choice=choice,
        width=loaded.form.width,
        pooling=loaded.network.pooling,
        encoder=encoder,
    )


def _first_layers(slow: LoadedVideo) -> Source:
    """The source of a keyframe graph alone: Slow's stem to res3, with their own hash and parameters."""
    from torch import nn

    net: Any = slow.net
    layers: nn.Module = nn.Sequential(*net.blocks[:3])
    source = slow.source
    revision = f"stem to res3 of Slow, {source.revision}"
    return describe_weights(layers, name=source.name, revision=revision, licence=source.licence)
