"""Open TensorRT engines: those of the bundle, and those built on this node and kept in its cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ....base.files import sha256_bytes
from ...bundle.graph_records import EngineRecord
from ...bundle.opening import Bundle
from ..machine import MachineFacts
from ..session import Session
from ..unavailable import Code, unavailable
from .cache import open_cache
from .cuda_device import CudaDevice
from .engine import EngineFile, Version, engine_version, load_engine, version_problem
from .package import import_tensorrt
from .runner import TensorRtSession
from .supply import ENGINE_SUFFIX, BuildTarget, cached_engine, engine_key, local_build_options
from .trial import try_engine


class TensorRtOpener:
    """Opens graphs of one bundle on one GPU, all on one stream, so that they share values without a copy."""

    def __init__(self, bundle: Bundle, facts: MachineFacts, notice: Callable[[str], None]) -> None:
        self._bundle, self._facts, self._notice = bundle, facts, notice
        self._device: CudaDevice | None = None

    def open_bundled(self, name: str, record: EngineRecord) -> Session:
        """Open an engine of the bundle. Raises the errors of trial.py and engine.py."""
        return self._open(
            name, self._bundle.path / record.file, self._bundle.manifest.files[record.file].sha256, record
        )

    def open_built(self, name: str) -> Session:
        """Open an engine that was built on this machine before, or build it now, which takes minutes."""
        manifest = self._bundle.manifest
        target = BuildTarget(self._facts, local_build_options(manifest, name), open_cache())
        key = engine_key(self._facts, self._sha256_of(name), target.options)
        if target.cache.find(key) is None:
            self._notice(f"graph '{name}': building a TensorRT engine for {key.gpu}; this takes minutes, once")
        kept = cached_engine(self._bundle, name, target, _NoProgress())
        path = target.cache.folder / f"{key.digest}{ENGINE_SUFFIX}"
        return self._open(name, path, sha256_bytes(kept.data), kept.record)

    def _open(self, name: str, path: Path, sha256: str, record: EngineRecord) -> Session:
        self._check_version(name, path, record)
        stripped = record.options.strip_weights
        file = EngineFile(
            graph=name,
            path=path,
            sha256=sha256,
            onnx=self._bundle.graph(name) if stripped else None,
            onnx_sha256=self._sha256_of(name) if stripped else "",
            host_code=record.options.version_compatible,
        )
        try_engine(file)
        trt = import_tensorrt()
        opened = load_engine(trt, file)
        if self._device is None:
            self._device = CudaDevice.open()
        gpu = self._facts.gpu.name if self._facts.gpu else "GPU"
        where = f"TensorRT {trt.__version__} on {gpu}"
        return TensorRtSession(trt, opened, self._device, name=name, where=where)

    def _check_version(self, name: str, path: Path, record: EngineRecord) -> None:
        """Check the version in the file's header, whatever its record states; nothing of it is executed."""
        here = Version.parse(self._facts.versions["tensorrt"])
        problem = version_problem(engine_version(path), here, version_compatible=record.options.version_compatible)
        if problem:
            raise unavailable(Code.PLAN_VERSION, f"graph '{name}', {path.name}: {problem}").error()

    def _sha256_of(self, name: str) -> str:
        """SHA-256 of the graph's ONNX file."""
        manifest = self._bundle.manifest
        return manifest.files[manifest.graphs[name].file].sha256


class _NoProgress:
    """Progress that is not shown: ``notice`` has announced that the build takes minutes."""

    def advance(self, steps: int = 1) -> None:
        pass

    def describe(self, text: str) -> None:
        pass
