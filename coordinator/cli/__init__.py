"""The commands of ``flamest-coordinator``, one file for each group, and the options that several of them have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[Path, typer.Option("--config", help="The server's settings, coordinator.toml.")]
DirOption = Annotated[Path, typer.Option("--dir", metavar="DIR", help="The folder that `init` made.")]
