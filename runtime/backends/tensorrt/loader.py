"""The two uppermost rungs: a plan of the bundle, and a plan that is built here and kept for the next time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ....base.files import sha256_bytes
from ...bundle.opening import Bundle
from ...bundle.records import EngineRecord
from ..machine import MachineFacts
from ..session import Session
from ..unavailable import Code, unavailable
from .cache import open_cache
from .cuda_device import CudaDevice
from .engine import EngineFile, Version, load_engine, plan_version, version_problem
from .package import import_tensorrt
from .runner import TensorRtSession
from .supply import SUFFIX, Site, kept_plan, plan_key, rebuild_options
from .trial import try_plan


class TensorRtOpener:
    """Opens graphs of one bundle on one GPU, all on one stream: their values pass between them without a copy."""

    def __init__(self, bundle: Bundle, facts: MachineFacts, notice: Callable[[str], None]) -> None:
        self._bundle, self._facts, self._notice = bundle, facts, notice
        self._device: CudaDevice | None = None

    def open_plan(self, name: str, plan: EngineRecord) -> Session:
        """A plan of the bundle. Raises the errors of trial.py and engine.py."""
        return self._open(name, self._bundle.path / plan.file, self._bundle.manifest.files[plan.file].sha256, plan)

    def open_rebuilt(self, name: str) -> Session:
        """A plan that was built on this machine before, or is built now, which takes minutes."""
        manifest = self._bundle.manifest
        site = Site(self._facts, rebuild_options(manifest, name), open_cache())
        key = plan_key(self._facts, self._sha256_of(name), site.options)
        if site.cache.find(key) is None:
            self._notice(f"graph '{name}': building a TensorRT plan for {key.gpu}; minutes, and once only")
        kept = kept_plan(self._bundle, name, site, _Unseen())
        path = site.cache.folder / f"{key.digest}{SUFFIX}"
        return self._open(name, path, sha256_bytes(kept.data), kept.record)

    def _open(self, name: str, path: Path, sha256: str, plan: EngineRecord) -> Session:
        self._check_version(name, path, plan)
        stripped = plan.options.strip_weights
        file = EngineFile(
            graph=name,
            plan=path,
            sha256=sha256,
            onnx=self._bundle.graph(name) if stripped else None,
            onnx_sha256=self._sha256_of(name) if stripped else "",
            host_code=plan.options.version_compatible,
        )
        try_plan(file)
        trt = import_tensorrt()
        opened = load_engine(trt, file)
        if self._device is None:
            self._device = CudaDevice.open()
        gpu = self._facts.gpu.name if self._facts.gpu else "GPU"
        where = f"TensorRT {trt.__version__} on {gpu}"
        return TensorRtSession(trt, opened, self._device, name=name, where=where)

    def _check_version(self, name: str, path: Path, plan: EngineRecord) -> None:
        """What the file itself says, whatever its record does; nothing of it is executed."""
        here = Version.parse(self._facts.versions["tensorrt"])
        problem = version_problem(plan_version(path), here, version_compatible=plan.options.version_compatible)
        if problem:
            raise unavailable(Code.PLAN_VERSION, f"graph '{name}', {path.name}: {problem}").error()

    def _sha256_of(self, name: str) -> str:
        """Of the graph's ONNX file."""
        manifest = self._bundle.manifest
        return manifest.files[manifest.graphs[name].file].sha256


class _Unseen:
    """Progress that nobody watches: ``notice`` has said that it takes minutes."""

    def advance(self, steps: int = 1) -> None:
        pass

    def describe(self, text: str) -> None:
        pass
