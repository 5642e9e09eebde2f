"""``flamest-coordinator``: the program of a federation's operator."""

from __future__ import annotations

from ...base.app import App
from .monitor import evaluation, history, model, status
from .server import run
from .setup import init, renew
from .silo import silo_app
from .state import backup, doctor, restore

app = App(
    "flamest-coordinator",
    extras=("coordinator",),
    no_args_is_help=True,
    help="The centre of a FLAMeST federation: enrol silos, run training rounds, hand out the model. "
    "Begin with `flamest-coordinator init`; it says what to do next.",
)
app.add_typer(silo_app, name="silo")
for command in (init, run, status, history, evaluation, model, backup, restore, renew, doctor):
    app.command(command.__name__)(command)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
