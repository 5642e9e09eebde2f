"""``flamest-export``: from published weights to a bundle that silos extract features with."""

from __future__ import annotations

from ...base.app import App
from .bench import bench
from .check import check
from .doctor import doctor
from .engines import engines
from .export import build, export
from .extractors import extractors
from .gpu_check import gpu_check
from .inspect import inspect
from .profile import profile
from .sign import keygen, sign
from .verify import verify
from .verify_weights import verify_weights

WITHOUT_PYTORCH = ("agent",)  # the extra that is enough for a command that loads no PyTorch

app = App("flamest-export", extras=("export",), takes_options_of="build", no_args_is_help=True)
app.callback(invoke_without_command=True)(export)
app.command("build")(build)
app.command("inspect", extras=WITHOUT_PYTORCH)(inspect)
app.command("verify")(verify)
app.command("check", extras=WITHOUT_PYTORCH)(check)
app.command("engines", extras=WITHOUT_PYTORCH)(engines)
app.command("plans", extras=WITHOUT_PYTORCH, hidden=True)(engines)  # the former name of engines
app.command("bench", extras=WITHOUT_PYTORCH)(bench)
app.command("profile", extras=WITHOUT_PYTORCH)(profile)
app.command("keygen", extras=WITHOUT_PYTORCH)(keygen)
app.command("sign", extras=WITHOUT_PYTORCH)(sign)
app.command("extractors")(extractors)
app.command("verify-weights")(verify_weights)
app.command("doctor")(doctor)
app.command("gpu-check")(gpu_check)


def main() -> None:
    app()
