"""Fixtures of the export tests: loaded tiny models, and the published checkpoints' lists of tensors."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(autouse=True)
def only_our_warnings() -> Iterator[None]:
    """PyTorch deprecates parts of itself that the libraries on top of it still call."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", category=DeprecationWarning, module=r"(torch|transformers|onnx|huggingface).*"
        )
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|transformers|onnx|huggingface).*")
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny networks: threads that wait for each other would cost more than they do."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def blip_base_shapes() -> dict[str, list[int]]:
    """Name and shape of each of the 474 tensors of the published BLIP base captioner."""
    return dict(json.loads((GOLDEN / "blip_base_tensors.json").read_text()))


@pytest.fixture(scope="session")
def slow_r50_shapes() -> dict[str, list[int]]:
    """Name and shape of each of the 320 tensors of SLOW_8x8_R50."""
    return dict(json.loads((GOLDEN / "slow_8x8_r50_tensors.json").read_text()))


@pytest.fixture(scope="session")
def tiny_blip() -> Any:
    """The ``random:tiny`` captioner as loaded. Read it; to change it, change a copy."""
    from flamest.export.weights.loading import open_blip
    from flamest.export.weights.source import parse_source

    return open_blip(parse_source("blip", "random:tiny"))


@pytest.fixture(scope="session")
def tiny_slow() -> Any:
    from flamest.export.weights.loading import open_video
    from flamest.export.weights.source import parse_source

    return open_video(parse_source("slow", "random:tiny"))


class Silent:
    """Progress that nobody watches."""

    def __init__(self) -> None:
        self.steps = 0
        self.said: list[str] = []

    def advance(self, steps: int = 1) -> None:
        self.steps += steps

    def describe(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def silent() -> Silent:
    return Silent()


@pytest.fixture(scope="session")
def unwatched() -> Silent:
    """The same for fixtures that several tests share."""
    return Silent()


@pytest.fixture(scope="session")
def clips() -> Any:
    """tests/runtime/clips.py; tests are no package, so there is nothing to import it from."""
    path = Path(__file__).parent.parent / "runtime" / "clips.py"
    spec = importlib.util.spec_from_file_location("flamest_tests_export_clips", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
