"""``flamest-export``: from published weights to a bundle that silos extract features with."""

from __future__ import annotations

import typer

from .bench import bench
from .check import check
from .doctor import doctor
from .engines import engines
from .export import export
from .extractors import extractors
from .gpu_check import gpu_check
from .inspect import inspect
from .sign import keygen, sign
from .verify import verify
from .verify_weights import verify_weights

app = typer.Typer(add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None)
app.callback(invoke_without_command=True)(export)
app.command("extractors")(extractors)
app.command("inspect")(inspect)
app.command("verify")(verify)
app.command("doctor")(doctor)
app.command("engines")(engines)
app.command("plans", hidden=True)(engines)  # the former name of engines
app.command("keygen")(keygen)
app.command("sign")(sign)
app.command("check")(check)
app.command("bench")(bench)
app.command("verify-weights")(verify_weights)
app.command("gpu-check")(gpu_check)


def main() -> None:
    app()
