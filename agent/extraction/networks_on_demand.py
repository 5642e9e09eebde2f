"""The networks of an extraction, opened when the first clip needs them, on the devices of the request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ...base.files import Stopped
from ...base.process import peak_resident_kb
from ...runtime.autotune.measurements import Choice
from ...runtime.autotune.selection import AutotuneRequest
from ...runtime.backends.opening import GraphPlacement, OpeningOptions, effective_precision
from ...runtime.bundle.manifest import Manifest
from ...runtime.clip_records import Clip, WorkerCrash
from ...runtime.device_workers import DeviceWorkers
from ...runtime.extractor import Extractor, open_extractor
from ...runtime.pipeline_options import PipelineSizes
from .chosen_devices import chosen_facts, worker_setups
from .precision_policy import AutotuneSettings, PrecisionPolicy
from .report import ExtractRequest
from .store import FeatureStore


class NetworksOnDemand:
    """The choice of how networks are opened, and the opened ones; close it when done."""

    def __init__(
        self, request: ExtractRequest, manifest: Manifest, store: FeatureStore, notice: Callable[[str], None]
    ) -> None:
        self._request = request
        self._manifest = manifest
        self._notice = notice
        self._policy = PrecisionPolicy.of(
            manifest, request.backend_options, store, request.store, request.training_precision
        )
        self.precision = self._policy.precision
        self.choice: Choice | None = None
        self._opened: Extractor | DeviceWorkers | None = None

    def open(self, clips: Iterator[Clip], stop: Callable[[], bool]) -> Extractor | DeviceWorkers:
        """Open the networks, which takes seconds; ``clips`` may be used to measure. Raises Stopped."""
        self._resolve_options(clips, stop)
        if stop():  # perhaps before the options were resolved
            raise Stopped
        request = self._request
        if setups := worker_setups(request):
            self._opened = DeviceWorkers.open(setups, notice=self._notice, stop=stop)
            return self._opened
        opening = OpeningOptions(
            request.backend_options, request.threads, chosen_facts(request), notice=self._notice, stop=stop
        )
        self._opened = open_extractor(
            request.bundle,
            opening=opening,
            pipeline=request.pipeline,
            limits=request.limits,
            trusted=request.trusted,
        )
        return self._opened

    def _resolve_options(self, clips: Iterator[Clip], stop: Callable[[], bool]) -> None:
        request = self._request
        autotune = AutotuneRequest(
            request.bundle,
            threads=request.threads,
            limits=request.limits,
            trusted=request.trusted,
            facts=chosen_facts(request),
        )
        backend_options, self.choice = self._policy.resolve(AutotuneSettings(autotune, self._notice, stop), clips)
        self._request = replace(request, backend_options=backend_options)
        self.precision = effective_precision(self._manifest, backend_options)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    @property
    def used_stored_precision(self) -> bool:
        return self._opened is not None and self._policy.uses_stored_precision

    @property
    def placements(self) -> tuple[GraphPlacement, ...]:
        return tuple(self._opened.placements.values()) if self._opened else ()

    @property
    def pipeline(self) -> dict[str, PipelineSizes]:
        return self._opened.pipeline if self._opened else {}

    @property
    def crashes(self) -> tuple[WorkerCrash, ...]:
        return tuple(self._opened.crashes) if self._opened else ()

    @property
    def peak_mb(self) -> float:
        own = peak_resident_kb() * 1024 / 1e6
        if isinstance(self._opened, DeviceWorkers):
            return own + self._opened.peak_mb
        return own + (self._opened.decoder_peak_mb if self._opened else 0.0)
