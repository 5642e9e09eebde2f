"""The commands of ``flamest-agent``, and the options that several of them have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ...base.options import config_option, dir_option
from ...base.place import Program

SETTINGS_FILE = "agent.toml"
AGENT = Program(
    "flamest-agent",
    SETTINGS_FILE,
    ("run", "status", "egress", "clips", "predict", "label", "doctor"),
    start="go to the folder of agent.toml, or give --config agent.toml or --dir DIR (flamest-agent keygen makes one)",
)
ConfigOption = Annotated[Path | None, config_option(SETTINGS_FILE)]
DirOption = Annotated[Path | None, dir_option(SETTINGS_FILE)]
