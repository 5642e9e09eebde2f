"""Optional extras of the installation: what each brings, and the one to install for the program that runs.

pyproject.toml decides what an extra installs; tests/base/test_extras.py compares the two.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

# Distributions by the name under which Python imports them, where the two differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cuda": "cuda-bindings",
    "dp_accounting": "dp-accounting",
    "google": "protobuf",
    "grpc": "grpcio",
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
}
# Modules that an export from PyTorch imports, in the order in which one needs the other.
EXPORT_MODULES = (
    "torch",
    "torchvision",
    "pytorchvideo.models.hub",
    "transformers",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "tokenizers",
    "safetensors",
)
_WIRE = frozenset({"cryptography", "grpcio", "protobuf", "safetensors"})
_AGENT = _WIRE | {"apsw", "av", "onnx", "onnxruntime", "pillow", "scikit-learn", "starlette", "tokenizers", "uvicorn"}
# What comes with each extra: of the packages that FLAMeST imports, those that it may find missing.
EXTRAS = {
    "agent": _AGENT,
    "coordinator": _WIRE | {"apsw"},
    "export": _AGENT | {"huggingface_hub"} | {module.partition(".")[0] for module in EXPORT_MODULES},
    "experiments": _AGENT | {"matplotlib", "umap-learn"},
    "onnx": frozenset({"onnx"}),
    "openvino": frozenset({"openvino"}),
    "privacy": frozenset({"dp-accounting"}),
}

_role: ContextVar[tuple[str, ...]] = ContextVar("role", default=())


@contextlib.contextmanager
def role(*extras: str) -> Iterator[None]:
    """Name the extras that the command running in the block is installed with, such as ``coordinator``."""
    token = _role.set(extras)
    try:
        yield
    finally:
        _role.reset(token)


def install_command(distribution: str, extra: str | tuple[str, ...]) -> str:
    """Return the command that installs a missing package.

    It names the extras of the running command where they bring the package, otherwise ``extra`` in addition.
    ``extra``: what brings the package where no command runs, such as "agent" or "agent,coordinator"; several are
    alternatives, one for each role.
    """
    role = _role.get()
    alternatives = (extra,) if isinstance(extra, str) else extra
    if any(distribution in EXTRAS.get(name, ()) for name in role):
        wanted = [",".join(role)]
    else:
        wanted = [",".join(dict.fromkeys((*role, *each.split(",")))) for each in alternatives]
    return " or ".join(f"pip install 'flamest[{extras}]'" for extras in wanted)


def extra_of_module(module: str) -> tuple[str, str] | None:
    """Return the distribution of a module that could not be imported, and an extra that brings it.

    None for a module of no extra: its absence is a broken installation, not a missing extra.
    """
    top = module.split(".")[0]
    distribution = DISTRIBUTIONS.get(top, top)
    return next(((distribution, extra) for extra, brought in EXTRAS.items() if distribution in brought), None)


def missing_package(modules: Iterable[str]) -> str | None:
    """Return the first of the packages around ``modules`` that is not installed; None when all are. Imports none."""
    return next((package for package in (_package(module) for module in modules) if not _is_installed(package)), None)


def _package(module: str) -> str:
    """Top of a module's name; two levels of ``google``, whose packages are distributions of their own."""
    return ".".join(module.split(".")[: 2 if module.startswith("google.") else 1])


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
