"""Extras that messages name, compared with pyproject.toml, and what a program without its extra says."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from flamest.base.extras import EXTRAS, extra_of_module
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
WITH_OTHERS = {"huggingface_hub"}  # comes with transformers

# Runs a command as if the packages of all extras were missing.
BARE = """
import importlib.abc, importlib, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import importlib.util
module, *sys.argv[1:] = sys.argv[1:]
importlib.import_module(module).main()
"""
MISSING = {
    "grpc", "google", "cryptography", "safetensors", "apsw", "av", "onnx", "onnxruntime", "PIL", "sklearn",
    "tokenizers", "torch", "torchvision", "transformers", "pytorchvideo", "matplotlib", "umap",
}  # fmt: skip


def installed_with(extra: str) -> set[str]:
    """Return the distributions that pyproject.toml lists for an extra, with the extras that it includes."""
    found: set[str] = set()
    for requirement in map(Requirement, OPTIONAL[extra]):
        if requirement.name == "flamest":
            for inner in requirement.extras:
                found |= installed_with(inner)
        else:
            found.add(requirement.name)
    return found


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_an_extra_brings_what_messages_say_it_brings(extra):
    assert EXTRAS[extra] - WITH_OTHERS <= installed_with(extra)


def test_a_module_is_known_by_its_distribution():
    assert extra_of_module("sklearn.cluster") == ("scikit-learn", "agent")
    assert extra_of_module("google.protobuf") == ("protobuf", "agent")
    assert extra_of_module("torch._C") == ("torch", "export")
    assert extra_of_module("flamest.no_such_module") is None


@pytest.mark.parametrize(
    ("module", "words", "extra"),
    [
        ("flamest.agent.cli.main", ("train", "--store", "s.sqlite", "--out", "m.safetensors"), "agent"),
        ("flamest.agent.cli.main", ("keygen", "north"), "agent"),
        ("flamest.coordinator.cli.main", ("init", "fl", "--host", "x", "--labels", "a,b"), "coordinator"),
        ("flamest.export.cli.main", ("--backend", "onnx", "--weights", "random:tiny", "--out", "b"), "export"),
        ("flamest.export.cli.main", ("build", "--backend", "onnx", "--weights", "random:tiny", "--out", "b"), "export"),
        ("flamest.export.cli.main", ("extractors",), "export"),
        ("flamest.export.cli.main", ("keygen", "me"), "agent"),
        ("flamest.experiments.demo_cli", ("--out", "demo"), "agent,coordinator"),
        ("flamest.experiments.cli", ("table2", "--store", "s.sqlite", "--dataset", "miniworld"), "experiments"),
        ("flamest.experiments.cli", ("table1", "--out", "out"), "experiments,export"),
    ],
)
def test_a_program_without_its_extra_names_that_extra(module, words, extra, tmp_path):
    (tmp_path / "s.sqlite").touch()
    done = subprocess.run(
        [sys.executable, "-c", BARE.format(missing=MISSING), module, *words, "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 78, done.stderr
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert (error["code"], error["fix"]) == ("missing_extra", f"pip install 'flamest[{extra}]'")
