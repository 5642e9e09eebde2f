"""The request that the options of ``extract`` make, with what agent.toml says where they say nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .own_settings import own_paths, own_rules

if TYPE_CHECKING:
    from ...base.place import Place
    from ...runtime.video.decoder import DecodeLimits
    from ..extraction.report import ExtractRequest
    from ..settings import AgentSettings


@dataclass(frozen=True)
class ExtractOptions:
    """Options of ``extract`` as they were given; None: not given."""

    bundle: Path | None
    videos: Path | None
    store: Path | None
    threads: int | None
    retry: bool
    clip_timeout: float | None  # seconds
    max_clip_gb: float | None
    trusted_key: Sequence[str] | None
    backend: Sequence[str] | None
    require_backend: bool
    precision: str | None
    device: str | None
    batch: int | None
    readers: int | None

    def request(self, place: Place, *, say_so: bool) -> ExtractRequest:
        """Return the request. ``say_so``: print what is taken from agent.toml.

        agent.toml is read where bundle, videos or store is not given. Raises UsageError for options that do not exist,
        and as ``own_paths``, ``own_rules`` and ``resolve_bundle``.
        """
        from ...runtime.backends.options import parse_backend_options
        from ...runtime.bundle.packaged import resolve_bundle
        from ...runtime.bundle.signature import read_trusted_keys
        from ...runtime.devices import check_devices
        from ...runtime.pipeline_options import PipelineOptions
        from ..extraction.report import ExtractRequest

        trusted = read_trusted_keys(self.trusted_key or (), where="--trusted-key")
        backends = parse_backend_options(self.backend or (), require=self.require_backend, precision=self.precision)
        if self.device is not None:
            check_devices(self.device)
        given = {"bundle": self.bundle, "videos": self.videos, "store": self.store}
        settings, paths = None, {name: path for name, path in given.items() if path is not None}
        if len(paths) < len(given):
            settings, paths = own_paths(place, say_so=say_so, **given)
        request = ExtractRequest(
            resolve_bundle(paths["bundle"]),
            paths["videos"],
            paths["store"],
            threads=self.threads,
            retry=self.retry,
            limits=self._limits(settings),
            trusted=trusted,
            backend_options=backends,
            pipeline=PipelineOptions(self.readers, self.batch),
            device=self.device or "",
            rules=own_rules(place, paths["videos"], say_so=say_so),
        )
        return request if settings is None else self._completed(request, settings)

    def _limits(self, settings: AgentSettings | None) -> DecodeLimits:
        from ...runtime.video.decoder import DecodeLimits
        from ..extraction.report import GB

        limits = DecodeLimits() if settings is None else settings.work.limits
        if self.clip_timeout is not None:
            limits = replace(limits, timeout_s=self.clip_timeout)
        return limits if self.max_clip_gb is None else replace(limits, largest_file=int(self.max_clip_gb * GB))

    def _completed(self, request: ExtractRequest, settings: AgentSettings) -> ExtractRequest:
        """Return the request with the daemon's trusted keys, and its backends, devices and cores unless given."""
        work = settings.work
        named = self.backend or self.require_backend or self.precision
        return replace(
            request,
            threads=work.threads if self.threads is None else self.threads,
            trusted=(*request.trusted, *settings.trust()),
            backend_options=request.backend_options if named else work.backend_options,
            training_precision=settings.precision,
            pipeline=work.pipeline(readers=self.readers, batch=self.batch),
            device=work.device if self.device is None else self.device,
        )
