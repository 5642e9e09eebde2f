"""The options that ``flamest-export`` shares between its commands, and what it refuses before any work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...base.errors import UsageError
from ...runtime.bundle.manifest import CrossAttention

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..networks.extractors import ExtractorEntry

CheckOption = Annotated[
    bool,
    typer.Option("--check", help="Check the graphs too as flamest-export check does; leave no bundle when one fails."),
]
BundleArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The bundle folder.")]

_HUB = "a hub id (OWNER/MODEL[@REVISION]), a folder with config.json, model.safetensors"
_FILE = "a checkpoint file (.safetensors, .pth, .pyth)"
BlipOption = Annotated[
    str | None, typer.Option(metavar="SRC", help=f"The captioner: {_HUB} and tokenizer.json, or a word of --weights.")
]
ClipOption = Annotated[
    str | None, typer.Option(metavar="SRC", help=f"CLIP: {_HUB} and tokenizer.json, or a word of --weights.")
]
SlowOption = Annotated[
    str | None,
    typer.Option(
        metavar="SRC",
        help=f"The Slow network, whose first layers pick the keyframes of every extractor: slow_r50 (PyTorchVideo's "
        f"published weights), {_FILE}, or a word of --weights.",
    ),
]
I3dOption = Annotated[str | None, typer.Option(metavar="SRC", help=f"I3D: i3d_r50, {_FILE}, or a word of --weights.")]
Resnet3dOption = Annotated[
    str | None, typer.Option(metavar="SRC", help=f"ResNet-3D: r3d_18, {_FILE}, or a word of --weights.")
]
VideomaeOption = Annotated[str | None, typer.Option(metavar="SRC", help=f"VideoMAE: {_HUB}, or a word of --weights.")]

PrecisionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--precision",
        metavar="[GRAPH=]WORD",
        help="What the graphs multiply in: fp32, fp16, bf16 or int8, for all graphs or for one of vision, text, words, "
        "clip, cnn. Can be given several times: --precision int8 --precision text=fp32.",
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="DIR",
        help="A folder of your own clips: int8 gets its ranges from them, and whole chains are compared on them. "
        "Without it, clips that the exporter draws.",
    ),
]

READINGS: tuple[CrossAttention, ...] = ("bidirectional", "causal-last", "causal-first")
MOST_CAPTIONED = 8  # keyframes


EXAMPLE = "flamest-export --backend onnx --out DIR"


def check_choices(backend: str | None, cross_attention: str) -> None:
    if backend is None:
        raise UsageError("no backend given: expected --backend onnx or --backend tensorrt", fix=EXAMPLE)
    if backend not in ("onnx", "tensorrt"):
        raise UsageError(f"--backend {backend}: no such backend, expected onnx or tensorrt", fix=EXAMPLE)
    if cross_attention not in READINGS:
        raise UsageError(f"--cross-attention {cross_attention}: expected one of {', '.join(READINGS)}")


def check_uses(
    entry: ExtractorEntry,
    given: Mapping[str, str | None],
    cross_attention: str,
    captions: Path | None,
    captioned_frames: int,
) -> None:
    """An option that this extractor has no use for would be a misunderstanding."""
    for network, source in given.items():
        if source is not None and network not in entry.needed_networks:
            raise UsageError(
                f"--{network} {source}: extractor {entry.name} has no such network, expected only "
                f"{', '.join(f'--{name}' for name in entry.needed_networks)}",
                fix="flamest-export extractors",
            )
    if cross_attention != READINGS[0] and entry.vlm != "blip":
        raise UsageError(
            f"--cross-attention {cross_attention}: extractor {entry.name} reads no caption with its frame",
            fix=f"flamest-export --backend onnx --extractor blip --cross-attention {cross_attention} --out DIR",
        )
    if captions is not None and entry.vlm != "clip":
        raise UsageError(
            f"--captions {captions}: extractor {entry.name} retrieves none",
            fix=f"flamest-export --backend onnx --extractor clip --captions {captions} --out DIR",
        )
    if not 1 <= captioned_frames <= MOST_CAPTIONED:
        raise UsageError(f"--captioned-frames {captioned_frames}: expected one of 1 to {MOST_CAPTIONED}")
    if captioned_frames > 1 and entry.vlm is None:
        raise UsageError(f"--captioned-frames {captioned_frames}: extractor {entry.name} captions none", fix=EXAMPLE)


def choose_sources(entry: ExtractorEntry, weights: str, given: Mapping[str, str | None]) -> dict[str, str]:
    """By network of the extractor the source word; ``published`` becomes the publisher's name."""
    from ..weights.sources import PUBLISHED, is_self_contained

    if weights != "published" and not is_self_contained(weights):
        raise UsageError(
            f"--weights {weights}: expected published, miniworld, random:full or random:tiny",
            fix="a file goes to its own network: flamest-export --backend onnx --blip FOLDER --slow FILE --out DIR",
        )
    words = {network: given[network] or weights for network in entry.needed_networks}
    return {network: PUBLISHED[network] if word == "published" else word for network, word in words.items()}
