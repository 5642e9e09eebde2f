"""The argument that several commands of ``flamest-export`` take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BundleArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The bundle folder.")]
