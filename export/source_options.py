"""The options that say where each network's weights come from, and the record of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import typer

WEIGHTS = "Weights"  # the heading in --help
_HUB = "a Hugging Face id (OWNER/MODEL[@REVISION]), a folder with config.json, model.safetensors"
_FILE = "a checkpoint file (.safetensors, .pth, .pyth)"
BlipOption = Annotated[
    str | None,
    typer.Option(
        metavar="SRC",
        rich_help_panel=WEIGHTS,
        help=f"The captioner, BLIP: {_HUB} and tokenizer.json, or a word of --weights.",
    ),
]
ClipOption = Annotated[
    str | None,
    typer.Option(
        metavar="SRC", rich_help_panel=WEIGHTS, help=f"CLIP: {_HUB} and tokenizer.json, or a word of --weights."
    ),
]
SlowOption = Annotated[
    str | None,
    typer.Option(
        metavar="SRC",
        rich_help_panel=WEIGHTS,
        help=f"The Slow network, whose first layers pick the keyframes of every extractor: slow_r50 (PyTorchVideo's "
        f"published weights), {_FILE}, or a word of --weights.",
    ),
]
I3dOption = Annotated[
    str | None,
    typer.Option(metavar="SRC", rich_help_panel=WEIGHTS, help=f"I3D: i3d_r50, {_FILE}, or a word of --weights."),
]
Resnet3dOption = Annotated[
    str | None,
    typer.Option(metavar="SRC", rich_help_panel=WEIGHTS, help=f"ResNet-3D: r3d_18, {_FILE}, or a word of --weights."),
]
VideomaeOption = Annotated[
    str | None, typer.Option(metavar="SRC", rich_help_panel=WEIGHTS, help=f"VideoMAE: {_HUB}, or a word of --weights.")
]

WeightsHashOption = Annotated[
    list[str] | None,
    typer.Option(
        "--weights-sha256",
        metavar="NETWORK=SHA256",
        rich_help_panel=WEIGHTS,
        help="The hash that a network's weights file must have: another file is refused before it is parsed. "
        "Can be given several times.",
    ),
]


@dataclass(frozen=True)
class SourceOptions:
    """The source of each network, as typed; None or empty where the option is not given."""

    blip: BlipOption = None
    clip: ClipOption = None
    slow: SlowOption = None
    i3d: I3dOption = None
    resnet3d: Resnet3dOption = None
    videomae: VideomaeOption = None

    def given(self) -> dict[str, str]:
        """Sources that are given, by network."""
        return {network: text for network, text in dataclasses.asdict(self).items() if text}
