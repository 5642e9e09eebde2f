"""Estimate of an export: sources, sizes, memory, downloads. No weights are read.

The networks are built from their configurations with memory that is not set, and their graphs' constants
counted: the sizes of the files follow to a few per cent. Seconds, whatever the networks' sizes. An encoder of one's own
is made and tried as for an export.
"""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.bundle.graph_records import Precision
from .encoder.loading import open_encoder
from .networks.blip import vision_module
from .networks.extractors import ExtractorEntry
from .networks.slow_i3d import keyframe_module
from .networks.small import BUILDERS, SMALL_FORMS
from .weights.hub import cached_folder, is_cached
from .weights.releases import BY_SOURCE, licence_warning, pinned_revision
from .weights.source import WeightSource
from .weights.video import VIDEO_WEIGHTS, zoo_cache

if TYPE_CHECKING:
    from torch import nn

    from .encoder.settings import Encoder

# Bytes per value of matrices and kernels; vectors (biases, norms) stay in four.
BYTES: Mapping[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_NODES = 60_000  # bytes of a graph that are not weights: about that, whatever the network
_TOKENIZER = 720_000  # bytes of tokenizer.json, BERT's
# Memory that an export takes: the libraries, and the largest network several times over (loaded, copied by
# the tracer, held as the graph, opened by ONNX Runtime). On the safe side: as doctor reckons for the published ones.
_LIBRARIES_BYTES, _TIMES = 1_100_000_000, 15


@dataclass(frozen=True)
class GraphEstimate:
    name: str
    precision: Precision
    values: int  # weights
    bytes: int  # of the ONNX file, about


@dataclass(frozen=True)
class SourceEstimate:
    """Source of one network.

    ``here``: location of the weights, for people; ``download_bytes``: 0 when nothing has to be fetched.
    """

    network: str
    name: str
    revision: str
    licence: str
    here: str
    download_bytes: int


@dataclass(frozen=True)
class Estimate:
    graphs: tuple[GraphEstimate, ...]
    sources: tuple[SourceEstimate, ...]
    bundle_bytes: int
    memory_bytes: int
    free_bytes: int  # on the disk where the bundle goes
    warnings: tuple[str, ...]

    @property
    def download_bytes(self) -> int:
        return sum(source.download_bytes for source in self.sources)


def estimate(
    entry: ExtractorEntry,
    sources: Mapping[str, WeightSource],
    out: Path,
    precisions: Mapping[str, Precision] | None = None,
) -> Estimate:
    """Estimate the export of ``entry``. ``sources``: by network; ``precisions``: by graph, fp32 where none is given.

    Raises DataError when a local folder's configuration describes no network.
    """
    graphs: list[GraphEstimate] = []
    largest = 0
    for name, shapes in _graph_shapes(entry, sources):
        precision: Precision = (precisions or {}).get(name, "fp32")
        values = sum(math.prod(shape) for shape in shapes)
        wide = sum(math.prod(shape) for shape in shapes if len(shape) > 1)
        size = wide * BYTES[precision] + (values - wide) * 4 + _NODES
        graphs.append(GraphEstimate(name, precision, values, size))
        largest = max(largest, 4 * values)
    found = tuple(_estimate_source(sources[network]) for network in entry.needed_networks)
    found += () if entry.encoder is None else (_estimate_encoder(entry.encoder),)
    tokenizer = _TOKENIZER if entry.vlm in ("blip", "blip-text") else 0
    warnings = [licence_warning(source.network, source.licence) for source in found]
    return Estimate(
        graphs=tuple(graphs),
        sources=found,
        bundle_bytes=sum(graph.bytes for graph in graphs) + tokenizer,
        memory_bytes=_LIBRARIES_BYTES + _TIMES * largest,
        free_bytes=shutil.disk_usage(_existing(out)).free,
        warnings=tuple(warning for warning in warnings if warning),
    )


Shape = tuple[int, ...]


def _graph_shapes(entry: ExtractorEntry, sources: Mapping[str, WeightSource]) -> Iterator[tuple[str, list[Shape]]]:
    """Shapes of the constants of each graph, one network at a time."""
    if entry.vlm == "clip":
        model = _build_clip(sources["clip"])
        yield "clip", [*_shapes(model.vision_model), *_shapes(model.visual_projection)]
    elif entry.vlm is not None:
        model = _build_blip(sources["blip"])
        yield "vision", _shapes(vision_module(model))
        # Keys and values of the image are computed in graph 'vision'; the caption alone needs no cross-attention.
        yield "text", _shapes(model.text_decoder, without=("crossattention.self.key", "crossattention.self.value"))
        if entry.vlm == "blip-text":
            yield "words", _shapes(model.text_decoder.bert, without=("crossattention",))
        del model
        gc.collect()
    if entry.encoder is not None:
        loaded, _ = open_encoder(entry.encoder)
        yield entry.encoder_graph, _shapes(loaded.net)
        del loaded
    if not entry.needed_networks:
        return
    slow, frames = _build_video(sources["slow"])
    yield "keyframes", _shapes(keyframe_module(slow))
    if entry.network is not None:
        net = slow
        if entry.network != "slow":
            net, frames = _build_video(sources[entry.network])
        module = VIDEO_WEIGHTS[entry.network].network.module(net, frames)
        yield "cnn", _shapes(module, without=("proj", "classifier", "fc"))


def _shapes(module: nn.Module, without: tuple[str, ...] = ()) -> list[Shape]:
    """Shapes of all stored floating values, each once; batch norms are folded into a bias of their convolution."""
    seen: set[int] = set()
    shapes: list[Shape] = []
    for name, tensor in module.state_dict(keep_vars=True).items():
        left_out = any(f".{part}." in f".{name}" for part in without) or name.endswith(("running_mean", "running_var"))
        if left_out or not tensor.is_floating_point() or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        shapes.append(tuple(tensor.shape))
    return shapes


def _build_blip(source: WeightSource) -> Any:
    from .networks.blip import BLIP_BASE_CONFIG, BLIP_TINY_CONFIG, build_blip
    from .weights.hub_folder import CONFIG_FILE, read_blip_config

    if source.kind == "random":
        return build_blip(BLIP_TINY_CONFIG if source.tiny else BLIP_BASE_CONFIG)
    if source.kind == "miniworld":
        return BUILDERS["blip"]()
    folder = source.folder if source.kind == "files" else cached_folder(*source.hub_id)
    return build_blip(BLIP_BASE_CONFIG if folder is None else read_blip_config(folder / CONFIG_FILE))


def _build_clip(source: WeightSource) -> Any:
    from .networks.clip import CLIP_BASE_CONFIG, CLIP_TINY_CONFIG, build_clip

    return (
        BUILDERS["clip"]()
        if source.kind == "miniworld"
        else build_clip(CLIP_TINY_CONFIG if source.tiny else CLIP_BASE_CONFIG)
    )


def _build_video(source: WeightSource) -> tuple[nn.Module, int]:
    """The network without its weights, and the frames that it sees of a clip."""
    if source.kind == "miniworld":
        return BUILDERS[source.network](), SMALL_FORMS[source.network].frames
    network = VIDEO_WEIGHTS[source.network].network
    net, form = network.tiny() if source.tiny else network.full()
    return net, form.frames


def _estimate_source(source: WeightSource) -> SourceEstimate:
    network, name, licence = source.network, source.name, source.licence
    if source.kind == "random":
        return SourceEstimate(network, name, "", licence, "made from a seed", 0)
    if source.kind == "miniworld":
        return SourceEstimate(network, name, "", licence, "in this package", 0)
    if source.kind == "files":
        return SourceEstimate(network, name, "local files", licence, "local files", 0)
    repository, revision = source.hub_id
    revision = revision or pinned_revision(repository) or ("main branch" if source.kind == "hub" else "")
    if _cached(source):
        return SourceEstimate(network, name, revision, licence, "in this machine's cache", 0)
    release = BY_SOURCE.get(repository)
    size = release.about_bytes if release else 4 * _published_values(network)
    return SourceEstimate(network, name, revision, licence, "to be downloaded", size)


def _estimate_encoder(encoder: Encoder) -> SourceEstimate:
    name = encoder.hub or encoder.timm or str(encoder.weights.name if encoder.weights else encoder.name)
    return SourceEstimate("encoder", name, "", encoder.licence or "not stated in its TOML", "as its module comes", 0)


def _cached(source: WeightSource) -> bool:
    if source.kind == "hub":
        return is_cached(source)
    return (zoo_cache() / BY_SOURCE[source.text].file).is_file()


def _published_values(network: str) -> int:
    return next(release.parameters for release in BY_SOURCE.values() if release.network == network)


def _existing(path: Path) -> Path:
    """``path`` itself or its nearest folder that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
