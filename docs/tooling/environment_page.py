"""The environment variables that FLAMeST reads or sets, from the registry in base/."""

from __future__ import annotations

from flamest.base.environment import VARIABLES

from .words import cell, table


def environment() -> str:
    """Return the table of variables."""
    rows = [
        (f"`{one.name}`", cell(one.meaning), cell(one.default), cell(one.readers))
        for one in sorted(VARIABLES, key=lambda one: not one.name.startswith("FLAMEST"))
    ]
    return table(("variable", "meaning", "when it is not set", "read by"), rows)
