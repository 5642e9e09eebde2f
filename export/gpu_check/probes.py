"""Steps of gpu-check that are no commands of their own: ``python -m flamest.export.gpu_check.probes NAME …``.

Each prints one JSON object in its last line, and ends with the exit code of its error.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import FlamestError

if TYPE_CHECKING:
    from .engine_facts import TrialSizes


def one_layer(_: argparse.Namespace) -> dict[str, Any]:
    from .one_layer import build_and_run

    return build_and_run()


def copy(words: argparse.Namespace) -> dict[str, Any]:
    """Copy a bundle, or the one that comes with the package (``miniworld``): engines are added to the copy."""
    import shutil

    from ...runtime.bundle.opening import open_bundle
    from ...runtime.bundle.packaged import resolve_bundle

    source = resolve_bundle(words.source)
    open_bundle(source)  # damaged files are named before hours are spent on them
    shutil.copytree(source, words.bundle, dirs_exist_ok=True)
    return {"bundle": str(words.bundle)}


def profiles(words: argparse.Namespace) -> dict[str, Any]:
    from .engine_facts import compare_profiles

    return compare_profiles(words.bundle, _trial(words))


def cuda_graphs(words: argparse.Namespace) -> dict[str, Any]:
    from .engine_facts import compare_cuda_graphs

    return compare_cuda_graphs(words.bundle, _trial(words))


def tf32(words: argparse.Namespace) -> dict[str, Any]:
    from .engine_facts import compare_tf32

    return compare_tf32(words.bundle, _trial(words))


def attention_casts(words: argparse.Namespace) -> dict[str, Any]:
    from .attention_casts import compare_casts

    return compare_casts(words.weights, **_given(words, "repeats"))


def convolutions(words: argparse.Namespace) -> dict[str, Any]:
    from .convolutions import compare_forms

    return compare_forms(words.weights, **_given(words, "repeats"))


def overflow(words: argparse.Namespace) -> dict[str, Any]:
    from .overflow import largest_activation

    return largest_activation(words.weights)


def prepared(words: argparse.Namespace) -> dict[str, Any]:
    from .prepared_frames import measure_prepared

    return measure_prepared(words.bundle, words.backend, words.batch)


def torch(words: argparse.Namespace) -> dict[str, Any]:
    from .torch_speed import measure_torch

    return measure_torch(words.weights, words.batch)


def _trial(words: argparse.Namespace) -> TrialSizes:
    from .engine_facts import TrialSizes

    return TrialSizes(**_given(words, "rows", "repeats", "max_batch"))


def _given(words: argparse.Namespace, *names: str) -> dict[str, int]:
    """The numbers that were typed; the others keep the sizes of a GPU machine."""
    return {name: getattr(words, name) for name in names if getattr(words, name) is not None}


_TRIAL = ("--rows", "--repeats", "--max-batch")
PROBES: Mapping[str, tuple[Callable[[argparse.Namespace], dict[str, Any]], tuple[str, ...]]] = {
    "one-layer": (one_layer, ()),
    "copy": (copy, ("source", "bundle")),
    "profiles": (profiles, ("bundle", *_TRIAL)),
    "cuda-graphs": (cuda_graphs, ("bundle", *_TRIAL)),
    "tf32": (tf32, ("bundle", *_TRIAL)),
    "attention-casts": (attention_casts, ("--weights", "--repeats")),
    "convolutions": (convolutions, ("--weights", "--repeats")),
    "overflow": (overflow, ("--weights",)),
    "prepared": (prepared, ("bundle", "--backend", "--batch")),
    "torch": (torch, ("--weights", "--batch")),
}
_TAKES: Mapping[str, dict[str, Any]] = {
    "source": {"type": Path},
    "bundle": {"type": Path},
    "--weights": {"required": True},
    "--backend": {"required": True},
    "--batch": {"type": int, "action": "append", "required": True},
    "--rows": {"type": int},
    "--repeats": {"type": int},
    "--max-batch": {"type": int},
}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flamest.export.gpu_check.probes", description=__doc__)
    named = parser.add_subparsers(dest="probe", required=True)
    for name, (_, takes) in PROBES.items():
        one = named.add_parser(name)
        for word in takes:
            one.add_argument(word, **_TAKES[word])
        one.add_argument("--json", action="store_true", help="accepted as by the commands; the output is always JSON")
    given = parser.parse_args(words)
    try:
        found = PROBES[given.probe][0](given)
    except FlamestError as error:
        sys.stderr.write(f"error: {error.message}\n  fix: {error.fix}\n")
        about = {"code": error.code, "message": error.message, "fix": error.fix}
        sys.stdout.write(json.dumps({"error": about, "exit_code": error.exit_code}) + "\n")
        return error.exit_code
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
