"""The extractors of the paper's Table 1, and how many parameters their networks have.

Counting builds the networks without memory; everything else here needs no PyTorch.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...base.errors import MissingExtra, UsageError
from ...runtime.bundle.manifest import FrameChoice

if TYPE_CHECKING:
    from ..encoder.settings import Encoder

Vlm = Literal["blip", "blip-text", "clip"]


@dataclass(frozen=True)
class PaperRow:
    """Row of the paper's Table 1, and the slips in it (docs/paper.md, parameter counts)."""

    number: int
    parameters: int
    dimension: int
    head_parameters: str  # as printed, of a classifier with one output unit
    slips: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExtractorEntry:
    name: str  # of the command line
    title: str  # of the tables
    vlm: Vlm | None
    network: str | None  # of the spatio-temporal part: a key of weights/video.py VIDEO_WEIGHTS
    choice: FrameChoice  # of its frames
    frames: str  # as the paper counts: "9 (1+8)"
    dimension: int  # of the embedding with the published networks
    paper: PaperRow | None = None
    encoder: Encoder | None = None  # of the exporter's own, after the others

    @property
    def encoder_graph(self) -> str:
        """The graph of ``encoder``: the first that sees several frames, or the second."""
        return "cnn" if self.network is None else "cnn2"

    @property
    def cnn(self) -> str | None:
        """The name of the spatio-temporal part as an extractor of its own."""
        if self.network is None:
            return None
        return self.network if self.choice == "keyframes" else f"{self.network}-uniform"

    @property
    def networks(self) -> tuple[str, ...]:
        """Networks whose parameters count."""
        vlm = () if self.vlm is None else ("clip" if self.vlm == "clip" else "blip",)
        return (*vlm, *(() if self.network is None else (self.network,)))

    @property
    def needed_networks(self) -> tuple[str, ...]:
        """Networks whose weights an export needs: Slow's first layers pick the keyframes of every extractor, but of an
        encoder of one's own alone with frames that are spread evenly."""
        if self.encoder is not None and not self.networks and self.encoder.choice == "uniform":
            return ()
        return tuple(dict.fromkeys((*self.networks, "slow")))


@dataclass(frozen=True)
class Count:
    """Parameters of one network."""

    parameters: int  # as Table 1 counts them
    stored: int  # each stored value once


_SLOWFAST = "34,566,488 is slowfast_r50; slow_r50, which the fused rows contain, has 32,454,096"
_VIDEOMAE = "dimension printed 786, is 768"
_797 = "classifier printed 797,457, is 787,457"

_SINGLE = (
    ExtractorEntry(
        "blip", "BLIP", "blip", None, "keyframes", "1", 768,
        PaperRow(1, 247_414_076, 768, "525,311", ("classifier printed 525,311, is 525,313",)),
    ),
    ExtractorEntry(
        "clip", "CLIP", "clip", None, "keyframes", "1", 1024,
        PaperRow(
            2, 151_277_313, 1024, "656,3855",
            ("classifier printed 656,3855, is 656,385", "the count is ViT-B/32's, the text says ViT-L/14"),
        ),
    ),
    ExtractorEntry(
        "resnet3d", "ResNet-3D", None, "resnet3d", "keyframes", "3", 512, PaperRow(4, 33_371_472, 512, "394,241")
    ),
    ExtractorEntry("i3d", "I3D", None, "i3d", "keyframes", "8", 2048, PaperRow(5, 28_043_472, 2048, "1,180,673")),
    ExtractorEntry(
        "slow", "Slow", None, "slow", "keyframes", "8", 2048, PaperRow(6, 34_566_488, 2048, "1,180,673", (_SLOWFAST,))
    ),
    ExtractorEntry("slow-uniform", "Slow (uniform frames)", None, "slow", "uniform", "8", 2048),
    ExtractorEntry(
        "videomae", "Video MAE", None, "videomae", "keyframes", "16", 768,
        PaperRow(7, 86_304_869, 786, "525,313", (_VIDEOMAE, "counted with a head of 101 classes")),
    ),
    ExtractorEntry(
        "blip-text", "BLIP text only", "blip-text", None, "keyframes", "1", 768,
        PaperRow(8, 247_414_076, 768, "525,313"),
    ),
)  # fmt: skip

_PAIRED_ROWS = {
    ("blip", "i3d"): PaperRow(9, 275_457_548, 2816, "1,573,889"),
    ("blip", "resnet3d"): PaperRow(10, 280_785_548, 1280, "797,457", (_797,)),
    ("blip", "slow"): PaperRow(11, 279_868_172, 2816, "1,573,889"),
    ("blip-text", "resnet3d"): PaperRow(12, 280_785_548, 1280, "797,457", (_797,)),
    ("blip-text", "i3d"): PaperRow(13, 275_457_548, 2816, "1,573,889"),
    ("blip-text", "slow"): PaperRow(14, 279_868_172, 2816, "1,573,889"),
}


def _pair(left: ExtractorEntry, right: ExtractorEntry) -> ExtractorEntry:
    seen = int(left.frames) + int(right.frames)
    return ExtractorEntry(
        name=f"{left.name}+{right.name}",
        title=f"{left.title}+{right.title}",
        vlm=left.vlm,
        network=right.network,
        choice=right.choice,
        frames=f"{seen} ({left.frames}+{right.frames})",
        dimension=left.dimension + right.dimension,
        paper=_PAIRED_ROWS[left.name, right.name],
    )


def _all() -> dict[str, ExtractorEntry]:
    singles = {entry.name: entry for entry in _SINGLE}
    pairs = itertools.product(("blip", "blip-text"), ("slow", "i3d", "resnet3d"))
    return singles | {f"{left}+{right}": _pair(singles[left], singles[right]) for left, right in pairs}


EXTRACTORS: dict[str, ExtractorEntry] = _all()


def own_extractor(encoder: Encoder) -> ExtractorEntry:
    """The extractor of an encoder of one's own, alone or after built-in networks."""
    base = EXTRACTORS[encoder.beside] if encoder.beside else None
    return ExtractorEntry(
        name=f"{base.name}+{encoder.name}" if base else encoder.name,
        title=f"{base.title}+{encoder.name}" if base else encoder.name,
        vlm=base.vlm if base else None,
        network=base.network if base else None,
        choice=base.choice if base else encoder.choice,
        frames=str(encoder.frames),
        dimension=0,  # known when the module was tried
        encoder=encoder,
    )


DEFAULT_EXTRACTOR = "blip+slow"


def find_extractor(name: str) -> ExtractorEntry:
    """The extractor of that name; raises UsageError that lists the known ones."""
    if name not in EXTRACTORS:
        raise UsageError(
            f"--extractor {name}: no such extractor, expected one of {', '.join(EXTRACTORS)}",
            fix="flamest-export extractors",
        )
    return EXTRACTORS[name]


@functools.cache
def count_networks() -> dict[str, Count]:
    """Parameters of every network of Table 1 in its published form, of the KD student and of the paper's slip.

    ``videomae`` has a head of 101 classes, as the paper counts it. Raises MissingExtra without the
    packages of ``flamest[export]``.
    """
    try:
        import torch
        import torchvision
    except ImportError as error:
        raise MissingExtra(error.name or "torch", extra="export") from error
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        CLIPConfig,
        CLIPModel,
        VideoMAEConfig,
        VideoMAEForVideoClassification,
    )

    from .blip import BLIP_BASE_CONFIG
    from .clip import CLIP_BASE_CONFIG
    from .reference import import_pytorchvideo, parameter_counts
    from .videomae import VIDEOMAE_BASE_CONFIG

    hub = import_pytorchvideo("models.hub")
    classifier: dict[str, Any] = {**VIDEOMAE_BASE_CONFIG, "num_labels": 101}
    with torch.device("meta"):
        nets = {
            "blip": BlipForConditionalGeneration._from_config(BlipConfig(**BLIP_BASE_CONFIG)),
            "clip": CLIPModel._from_config(CLIPConfig(**CLIP_BASE_CONFIG)),
            "resnet3d": torchvision.models.video.r3d_18(),
            "i3d": hub.i3d_r50(),
            "slow": hub.slow_r50(),
            "videomae": VideoMAEForVideoClassification._from_config(VideoMAEConfig(**classifier)),
            "resnet18": torchvision.models.resnet18(),
            "slowfast_r50": hub.slowfast_r50(),
        }
    return {name: Count(*parameter_counts(net)) for name, net in nets.items()}


def count_parameters() -> dict[str, int]:
    """Frozen parameters of every extractor, as Table 1 counts them: the sum of its published networks."""
    counts = count_networks()
    return {name: sum(counts[part].parameters for part in entry.networks) for name, entry in EXTRACTORS.items()}
