"""``flamest-agent keygen``: the first step of joining a federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..base.console import command


@command
def keygen(
    name: Annotated[str, typer.Argument(help="This silo's name: 1 to 40 of a-z, 0-9 and '-'.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the key and the request.")] = Path(),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one machine-readable JSON object as the last line.")
    ] = False,
) -> dict[str, Any]:
    """Make this silo's private key and the request that the coordinator's operator signs.

    The key stays on this machine. The operator gives back silo.pem and ca.pem; agent.toml names all three.
    """
    from .keys import make_request
    from .settings import write_starter

    made = make_request(name, out)
    starter = write_starter(out, made.key_path.name)
    if not as_json:
        print(f"key (keep it here, tell no one): {made.key_path}")
        print(f"request (send it to the coordinator's operator): {made.csr_path}")
        print(f"the operator runs: flamest-coordinator silo add {name} --csr {made.csr_path.name}")
        if starter is not None:
            print(f"settings to fill in: {starter}")
    return {"name": name, "key": str(made.key_path), "csr": str(made.csr_path), "settings": starter and str(starter)}
