"""Measurements and choice of ``--precision auto`` (selection.py), and the folder that keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from ...base.errors import DataError, StorageError
from ...base.files import read_regular, write_atomic
from ..backends.options import DEFAULT_OPTIONS, BackendOptions

MIN_COSINE = 0.999  # smallest, of a clip's vectors to ONNX Runtime's
REFERENCE = "onnxruntime"
_LONGEST = 1 << 20  # bytes of kept measurements
MIXED = "each graph's fastest"
_KEYFRAMES = {"keyframes": "onnxruntime"}  # the same frames whatever backend embeds them
CONFIGURATIONS: Mapping[str, BackendOptions] = {  # the simplest first
    REFERENCE: BackendOptions("onnxruntime"),
    "openvino": BackendOptions("openvino", by_graph=_KEYFRAMES),
    "openvino bf16": BackendOptions("openvino", by_graph=_KEYFRAMES, bf16=True),
}


class Measurement(msgspec.Struct, frozen=True):
    """Times and results of one configuration."""

    backend: str  # of CONFIGURATIONS, or MIXED
    by_graph: dict[str, str]  # MIXED: backend by graph; empty for the others
    ms_per_clip: float  # in the networks alone, the sum of ``stages_ms``
    stages_ms: dict[str, float]  # by stage, of a clip, medians over the passes
    smallest_cosine: float  # to ONNX Runtime's, of all clips' vectors
    captions_equal: int
    clips: int
    passes: int  # that were timed

    @property
    def fits(self) -> bool:
        return self.captions_equal == self.clips and self.smallest_cosine >= MIN_COSINE

    @property
    def backend_options(self) -> BackendOptions:
        return (
            BackendOptions(by_graph={**self.by_graph, **_KEYFRAMES}) if self.by_graph else CONFIGURATIONS[self.backend]
        )


class Measured(msgspec.Struct, frozen=True):
    """Measurements of all configurations of a bundle on a machine."""

    measurements: tuple[Measurement, ...] = msgspec.field(name="contenders")  # ONNX Runtime first
    refused: dict[str, str] = {}  # by configuration, why it has no measurement


class Choice(msgspec.Struct, frozen=True):
    """The chosen configuration. ``measurements`` is empty where nothing had to be measured."""

    chosen: str  # of CONFIGURATIONS, MIXED, or "auto": the ranking decides
    why: str
    measurements: tuple[Measurement, ...] = msgspec.field(name="contenders", default=())
    refused: dict[str, str] = {}  # by configuration, why it was not measured
    kept: bool = False  # measured by an earlier run

    @property
    def backend_options(self) -> BackendOptions:
        measured = (each.backend_options for each in self.measurements if each.backend == self.chosen)
        return next(measured, CONFIGURATIONS.get(self.chosen, DEFAULT_OPTIONS))

    @property
    def line(self) -> str:
        """One line for people."""
        return f"precision auto: {self.why}{' (measured before)' if self.kept else ''}"


kept_in_memory: dict[str, Measured] = {}  # by key, where no folder can be written


def read_measured(folders: Sequence[Path], key: str) -> Measured | None:
    """Measurements kept under ``key``; None for a file that cannot be read or is of another version."""
    for folder in folders:
        try:
            return msgspec.json.decode(read_regular(folder / f"{key}.json", largest=_LONGEST), type=Measured)
        except (DataError, StorageError, ValueError, RecursionError):  # ValueError: msgspec's, and not UTF-8
            continue
    return kept_in_memory.get(key)


def keep_measured(folders: Sequence[Path], key: str, measured: Measured) -> Path | None:
    """Keep it in the first folder that can be written; None: in this process's memory only."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(folder / f"{key}.json", msgspec.json.encode(measured), mode=0o600)
        except (OSError, StorageError):
            continue
        return folder
    kept_in_memory[key] = measured
    return None
