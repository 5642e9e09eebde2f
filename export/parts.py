"""The parts of a bundle, each from a loaded network to graphs with their proof and the manifest's record of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import UsageError
from ..base.files import write_atomic
from ..base.progress import Progress
from ..runtime.bundle.manifest import (
    TOKENIZER_FILE,
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
from ..runtime.bundle.records import Graph, GraphParity
from .graphs.export import GraphSpec
from .graphs.spec import (
    CANDIDATES,
    MAX_NEW_TOKENS,
    clip_plan,
    cnn_plan,
    keyframe_plan,
    text_plan,
    vision_plan,
    words_plan,
)
from .networks.architectures import FRAMES, VideoForm, parameter_counts
from .networks.blip import text_shape
from .networks.clip import encode_captions, hash_tokens, read_captions, tokenize_captions
from .networks.preprocessing import blip_frames, pytorchvideo_frames
from .networks.slow import keyframe_width
from .parity.blip import compare_blip
from .parity.chain import ChainPart, compare_captioner, compare_motion, compare_retriever
from .parity.single_graphs import compare_clip, compare_cnn, compare_keyframes
from .parity.written_graphs import WrittenGraphs
from .precision.calibration import CHAIN_SEED, CalibrationClips, seeded_footage
from .precision.lowering import Lowering, write_lowered
from .weights.sources import ClipSource, VideoSource, hash_weights, open_blip, open_clip
from .weights.tokenizer import token_id

if TYPE_CHECKING:
    from torch import nn
    from transformers import BlipForConditionalGeneration


@dataclass(frozen=True)
class ExportContext:
    """Where the parts are made: the bundle's folder, who watches, and how many cores there are."""

    folder: Path
    progress: Progress
    threads: int | None
    lowering: Lowering = field(default_factory=Lowering)
    footage: CalibrationClips = field(
        default_factory=lambda: seeded_footage(CHAIN_SEED)
    )  # for the comparison of whole chains

    @contextlib.contextmanager
    def phase(self, text: str) -> Iterator[None]:
        """One step of long work: said when it begins, counted when it is done."""
        self.progress.describe(text)
        yield
        self.progress.advance()

    def write(self, plan: GraphSpec, frames: FramePreprocessing | None = None) -> dict[str, Graph]:
        """``frames``: how frames are prepared for the graph, where it sees any."""
        with self.phase(f"write graph '{plan.name}'"):
            return {plan.name: write_lowered(plan, self.folder, self.lowering, frames)}

    def written(self, graphs: Mapping[str, Graph]) -> WrittenGraphs:
        return WrittenGraphs(self.folder, graphs, self.threads)


@dataclass(frozen=True)
class Part:
    """What one part adds to the manifest."""

    graphs: dict[str, Graph]
    parity: dict[str, GraphParity]
    sources: dict[str, Source]
    captions: int = 0  # compared with PyTorch's
    captions_equal: int = 0
    chain: ChainPart | None = None  # beside fp32, where a graph is in another precision


BLIP_STEPS, CLIP_STEPS, KEYFRAME_STEPS, CNN_STEPS = 4, 3, 3, 3  # phases of a part; CNN_STEPS with its loading


def export_blip(
    name: str, attention_mode: AttentionMode, captioned_frames: int, shop: ExportContext
) -> tuple[VisionLanguage, Part]:
    """The captioner from the source ``name``: graphs ``vision``, ``text`` and, read alone, ``words``; its tokenizer."""
    with shop.phase(f"load BLIP ({name})"):
        loaded = open_blip(name)
    spec = vision_language(loaded.model, loaded.tokenizer, attention_mode, captioned_frames)
    write_atomic(shop.folder / TOKENIZER_FILE, loaded.tokenizer)
    plans = captioner_plans(loaded.model, attention_mode)
    graphs = {name: graph for plan in plans.values() for name, graph in shop.write(plan, spec.preprocessing).items()}
    with shop.phase("compare BLIP with PyTorch"):
        written = shop.written(graphs)
        parity = compare_blip(loaded.model, written, spec)
        chain = None if is_fp32(graphs) else compare_captioner(plans, written, spec, shop.footage)
    sources = {"blip": loaded.source}
    return spec, Part(graphs, parity.graphs, sources, parity.captions, parity.captions_equal, chain)


def captioner_plans(model: BlipForConditionalGeneration, attention_mode: AttentionMode) -> dict[str, GraphSpec]:
    plans = (vision_plan(model), text_plan(model), *((words_plan(model),) if attention_mode == "text" else ()))
    return {plan.name: plan for plan in plans}


def is_fp32(graphs: Mapping[str, Graph]) -> bool:
    return {graph.precision for graph in graphs.values()} == {"fp32"}


def export_clip(
    name: str, captions: Path | None, captioned_frames: int, shop: ExportContext
) -> tuple[RetrievedCaption, Part]:
    """CLIP from the source ``name`` with the captions of that file, or those that come with the source."""
    with shop.phase(f"load CLIP ({name})"):
        loaded = open_clip(name)
        spec, tokens = retrieved_caption(loaded, _captions(loaded, captions), captioned_frames)
    plan = clip_plan(loaded.model, encode_captions(loaded.model, tokens))
    graphs = shop.write(plan, spec.preprocessing)
    with shop.phase("compare CLIP with PyTorch"):
        written = shop.written(graphs)
        parity = compare_clip(loaded.model, tokens, written, spec)
        chain = None if is_fp32(graphs) else compare_retriever(plan, written, spec, shop.footage)
    sources = {"clip": loaded.source}
    return spec, Part(graphs, {"clip": parity.graph}, sources, parity.captions, parity.captions_equal, chain)


def export_keyframes(slow: VideoSource, shop: ExportContext) -> tuple[KeyframeRule, Part]:
    """Graph ``keyframes`` from Slow; ``sources`` stays empty: the caller knows whether all of Slow is in the bundle."""
    graphs = shop.write(keyframe_plan(slow.net, slow.form))
    with shop.phase("compare keyframe features with PyTorch"):
        parity = compare_keyframes(slow.net, shop.written(graphs), slow.form)
    return keyframe_rule(slow.net, slow.form), Part(graphs, {"keyframes": parity}, {})


def export_cnn(loaded: VideoSource, choice: FrameChoice, shop: ExportContext) -> tuple[SpatioTemporal, Part]:
    """Graph ``cnn`` from a loaded network."""
    network, net, form = loaded.network, loaded.net, loaded.form
    plan = cnn_plan(network, net, form)
    graphs = shop.write(plan, loaded.preprocessing)
    with shop.phase(f"compare {network.name} with PyTorch"):
        written = shop.written(graphs)
        parity = compare_cnn(network, net, written, form)
        chain = None if is_fp32(graphs) else compare_motion(plan, written, loaded.preprocessing, shop.footage)
    spec = SpatioTemporal(
        network=network.name,
        preprocessing=loaded.preprocessing,
        frames=form.frames,
        choice=choice,
        width=form.width,
        pooling=network.pooling,
    )
    return spec, Part(graphs, {"cnn": parity}, {network.name: loaded.source}, chain=chain)


def first_layers(slow: VideoSource) -> Source:
    """The source of a keyframe graph alone: Slow's stem to res3, with their own hash and parameters."""
    from torch import nn

    net: Any = slow.net
    layers = nn.Sequential(*net.blocks[:3])
    counted, stored = parameter_counts(layers)
    return Source(
        name=slow.source.name,
        revision=f"stem to res3 of Slow, {slow.source.revision}",
        weights_sha256=hash_weights(layers),
        parameters=counted,
        parameters_tied=stored,
        licence=slow.source.licence,
    )


def vision_language(
    model: BlipForConditionalGeneration, tokenizer: bytes, attention_mode: AttentionMode, captioned_frames: int
) -> VisionLanguage:
    """Preprocessing, caption rule and reading of a captioner (docs/paper.md, reading 1: greedy, no prompt)."""
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
        attention_mode=attention_mode,
        width=shape.width,
        captioned_frames=captioned_frames,
    )


def retrieved_caption(
    loaded: ClipSource, captions: tuple[str, ...], captioned_frames: int
) -> tuple[RetrievedCaption, list[list[int]]]:
    """The manifest's record, and the captions' token ids."""
    config = loaded.model.config
    tokens = tokenize_captions(loaded.tokenizer, captions, config)
    spec = RetrievedCaption(
        preprocessing=loaded.preprocessing,
        captions=captions,
        tokens_sha256=hash_tokens(tokens),
        width=2 * config.projection_dim,
        captioned_frames=captioned_frames,
    )
    return spec, tokens


def _captions(loaded: ClipSource, file: Path | None) -> tuple[str, ...]:
    captions = loaded.captions if file is None else read_captions(file)
    if not captions:
        raise UsageError(
            "CLIP retrieves captions that were written beforehand, and none are given",
            fix='write {"CLASS": "a caption of that class", …} into a file, and give it with --captions FILE.json',
        )
    return captions


def keyframe_rule(net: nn.Module, form: VideoForm) -> KeyframeRule:
    return KeyframeRule(
        count=FRAMES,
        candidates=CANDIDATES,
        preprocessing=pytorchvideo_frames(form.keyframe_size),
        feature_width=keyframe_width(net),
        space="slow stem to res3, mean over positions",
    )
