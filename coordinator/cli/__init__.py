"""The commands of ``flamest-coordinator``, one file for each group, and the options that several of them have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...base.options import config_option, dir_option
from ...base.place import Program

SETTINGS_FILE = "coordinator.toml"
COORDINATOR = Program(
    "flamest-coordinator",
    SETTINGS_FILE,
    (
        *("run", "status", "history", "evaluation", "model", "backup", "restore", "doctor", "renew"),
        *("silo add", "silo list", "silo renew", "silo revoke", "silo release"),
    ),
    start="go to the folder that `flamest-coordinator init DIR` made, or give --config coordinator.toml or --dir DIR",
)
ConfigOption = Annotated[Path | None, config_option(SETTINGS_FILE)]
RunOption = Annotated[
    str | None,
    typer.Option("--run", metavar="NAME", help="An earlier run in the state folder; [run] name when not given."),
]
DirOption = Annotated[Path | None, dir_option(SETTINGS_FILE)]
