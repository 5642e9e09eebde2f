"""All weights of an export, fetched before its work begins: minutes are not spent on what cannot be finished."""

from __future__ import annotations

from collections.abc import Iterable

from .hub import fetch_folder
from .hub_folder import FILES_TO_BRING
from .source import WeightSource
from .video import VIDEO_WEIGHTS, fetch_zoo_file


def fetch_sources(sources: Iterable[WeightSource]) -> None:
    """Bring the published weights of ``sources`` into this machine's caches, each shown as it is fetched.

    Raises as ``fetch_folder`` and ``fetch_zoo_file``.
    """
    for source in sources:
        if source.kind == "hub":
            fetch_folder(source, to_bring=FILES_TO_BRING[source.network])
        elif source.kind == "zoo" and (zoo := VIDEO_WEIGHTS[source.network].zoo) is not None:
            fetch_zoo_file(zoo, source)
