"""The precision that an extraction keeps to: what is asked for, and what the store has of the bundle already.

Features of two precisions in one store are not trained on together, and a person who asked for none did not ask for a
second. So a store that has features of one precision of the bundle is followed, where the bundle can be computed in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ...base.files import printable_path
from ...runtime.autotune.records import Choice
from ...runtime.autotune.selection import AutotuneRequest, autotune_backends, require_precision
from ...runtime.backends.opening import effective_precision
from ...runtime.backends.options import AUTO, BackendOptions
from ...runtime.bundle.manifest import Manifest
from ...runtime.records import Clip
from .store import FeatureStore


class ResolvedPrecision(NamedTuple):
    """How the networks are opened."""

    backend_options: BackendOptions
    choice: Choice | None = None  # what ``--precision auto`` came to


@dataclass(frozen=True)
class PrecisionPolicy:
    """What is asked for beside what there is."""

    manifest: Manifest
    backend_options: BackendOptions
    kinds: tuple[str, ...]  # precisions of the bundle's features in the store, the most frequent first
    trained_on: str | None  # the precision that the settings name for training
    store: Path

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        backend_options: BackendOptions,
        store: FeatureStore,
        path: Path,
        trained_on: str | None,
    ) -> PrecisionPolicy:
        kinds = tuple(kind.precision for kind in store.kinds() if kind.fingerprint == manifest.fingerprint)
        return cls(manifest, backend_options, kinds, trained_on, path)

    @property
    def held(self) -> str | None:
        """What is kept to: the precision that training asks for, or that of the store."""
        return self.trained_on or (self.kinds[0] if self.kinds else None)

    @property
    def follows(self) -> bool:
        """Whether the store's precision is taken because nothing is asked for that forbids it."""
        asked = {self.backend_options.backend, *self.backend_options.by_graph.values()}
        return (
            self.held is not None
            and (self.trained_on is not None or len(self.kinds) == 1)
            and not (self.backend_options.autotune or self.backend_options.bf16)
            and asked <= {AUTO, "openvino"}
            and self.held != effective_precision(self.manifest, self.backend_options)
            and self.held == effective_precision(self.manifest, self._lowered)
        )

    @property
    def precision(self) -> str:
        """Under which the clips are looked for in the store; of an empty one, any."""
        if self.held is not None and (self.backend_options.autotune or self.follows):
            return self.held
        return effective_precision(self.manifest, self.backend_options)

    def settle(self, measuring: Measuring, clips: Iterable[Clip]) -> ResolvedPrecision:
        """To be asked once there is a clip to extract; ``clips`` are those, in order, and looked at when measured.

        Raises SettingsError ``held_precision`` where nothing here computes in the store's precision.
        """
        if self.backend_options.autotune:
            question = replace(measuring.question, stored_precision=self.held, fallback_folder=_beside(self.store))
            choice = autotune_backends(question, clips, notice=measuring.notice, stop=measuring.stop)
            measuring.notice(choice.line)
            return ResolvedPrecision(choice.backend_options, choice)
        if self.follows and self.held is not None:
            require_precision(self.manifest, self.held, self._lowered)
            measuring.notice(
                f"warning: new clips are computed in {self.held}, as the features of this bundle in "
                f"{printable_path(self.store)} are; to ask for it: --precision {self.held}, or "
                f'precision = "{self.held}" under [work] of agent.toml'
            )
            return ResolvedPrecision(self._lowered)
        if self.kinds and self.precision not in self.kinds:
            measuring.notice(
                f"warning: {printable_path(self.store)} holds {', '.join(self.kinds)} features of this bundle, "
                f"those of new clips are {self.precision}: they are not trained on together"
            )
        return ResolvedPrecision(self.backend_options)

    @property
    def _lowered(self) -> BackendOptions:
        return replace(self.backend_options, bf16=True)


@dataclass(frozen=True)
class Measuring:
    """What ``--precision auto`` needs to measure."""

    question: AutotuneRequest
    notice: Callable[[str], None]
    stop: Callable[[], bool]


def _beside(store: Path) -> Path:
    return store.with_name(f"{store.name}.choices")
