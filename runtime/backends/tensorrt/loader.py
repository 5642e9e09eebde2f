"""Open TensorRT engines: those of the bundle, and those built on this node and kept in its cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ....base.errors import FlamestError
from ....base.files import printable_path, sha256_bytes
from ....base.progress import NoProgress
from ...bundle.graph_records import EngineRecord
from ...bundle.opening import Bundle
from ..machine import MachineFacts
from ..session import Session
from ..unavailable import Code, unavailable
from .cache import open_cache
from .cuda_calls import use_gpu
from .cuda_device import CudaDevice
from .engine import Version, engine_version, load_engine, version_problem
from .first_engine import try_first_engine
from .package import import_tensorrt
from .runner import TensorRtSession
from .supply import (
    BuildTarget,
    EngineOnDisk,
    cached_engine,
    local_build_options,
    proved_engine,
)
from .verdict import Verdict
from .verdicts import standing_verdict, verdict_cache


class TensorRtOpener:
    """Opens graphs of one bundle on one GPU, whose sessions share values without a copy."""

    def __init__(self, bundle: Bundle, facts: MachineFacts, notice: Callable[[str], None]) -> None:
        self._bundle, self._facts, self._notice = bundle, facts, notice
        self._device: CudaDevice | None = None
        self._builds = False  # an engine of one layer was built here
        self.verdicts: dict[str, Verdict] = {}  # on the engine of each graph that was to be opened

    def open_bundled(self, name: str, record: EngineRecord) -> Session:
        """Open an engine of the bundle. Raises the errors of trial.py and engine.py, and ENGINE_WRONG."""
        sha256 = self._bundle.manifest.files[record.file].sha256
        return self._open(record, EngineOnDisk(name, self._bundle.path / record.file, sha256))

    def open_built(self, name: str) -> Session:
        """Open an engine that was built on this machine before, or build it now, which takes minutes."""
        manifest = self._bundle.manifest
        target = BuildTarget(self._facts, local_build_options(manifest, name), open_cache())
        key = target.key(manifest, name)
        if target.cache.find(key) is None:
            self._notice(f"graph '{name}': building a TensorRT engine for {key.gpu}; this takes minutes, once")
            if not self._builds:
                try_first_engine(device=self._facts.device)
                self._builds = True
        path = target.cache.path(key)
        try:
            kept = cached_engine(self._bundle, name, target, NoProgress())
            return self._open(kept.record, EngineOnDisk(name, path, sha256_bytes(kept.data)))
        except FlamestError as error:
            if error.code != Code.ENGINE_WRONG.value or not path.exists():
                raise
            fix = (
                f"rm {printable_path(path)}: the next start builds it again; if it is wrong again, report it with the "
                "evidence and run with --backend onnxruntime-cuda"
            )
            raise type(error)(error.message, fix=fix, code=error.code) from error

    def _open(self, record: EngineRecord, engine: EngineOnDisk) -> Session:
        name = engine.name
        self._check_version(name, engine.path, record)
        proved = proved_engine(self._bundle, record, engine, self._facts)
        verdict = standing_verdict(proved, verdict_cache(), self._notice)
        self.verdicts[name] = verdict
        if verdict.wrong:
            raise verdict.error(name, engine.path.name)
        trt = import_tensorrt()
        use_gpu(self._facts.device)
        opened = load_engine(trt, proved.file)
        if self._device is None:
            self._device = CudaDevice.open(number=self._facts.device)
        gpu = self._facts.gpu.name if self._facts.gpu else "GPU"
        where = f"TensorRT {trt.__version__} on {gpu}"
        return TensorRtSession(trt, opened, self._device, name=name, where=where, cuda_graphs=verdict.cuda_graphs)

    def _check_version(self, name: str, path: Path, record: EngineRecord) -> None:
        """Check the version in the file's header, whatever its record states; nothing of it is executed."""
        here = Version.parse(self._facts.versions["tensorrt"])
        problem = version_problem(engine_version(path), here, version_compatible=record.options.version_compatible)
        if problem:
            raise unavailable(Code.PLAN_VERSION, f"graph '{name}', {path.name}: {problem}").error()
