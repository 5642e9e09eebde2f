"""The precision of an extraction: from the options, and from the features that the store holds already.

Features of two precisions in one store are not trained on together, and a person who chose no precision did not choose
a second one. So an extraction into a store that holds one precision of the bundle uses it, where this machine can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ...base.files import printable_path
from ...runtime.autotune.measurements import Choice
from ...runtime.autotune.selection import AutotuneRequest, autotune_backends, require_precision
from ...runtime.backends.opening import effective_precision
from ...runtime.backends.options import AUTO, BackendOptions
from ...runtime.bundle.manifest import Manifest
from ...runtime.clip_records import Clip
from .store import FeatureStore


class ResolvedPrecision(NamedTuple):
    """The options that the networks are opened with."""

    backend_options: BackendOptions
    choice: Choice | None = None  # the result of ``--precision auto``


@dataclass(frozen=True)
class PrecisionPolicy:
    """The precision requested, next to the precisions in the store."""

    manifest: Manifest
    backend_options: BackendOptions
    kinds: tuple[str, ...]  # precisions of the bundle's features in the store, the most frequent first
    training_precision: str | None  # the precision that the settings name for training
    store: Path

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        backend_options: BackendOptions,
        store: FeatureStore,
        path: Path,
        training_precision: str | None,
    ) -> PrecisionPolicy:
        kinds = tuple(kind.precision for kind in store.kinds() if kind.fingerprint == manifest.fingerprint)
        return cls(manifest, backend_options, kinds, training_precision, path)

    @property
    def stored_precision(self) -> str | None:
        """Precision to keep: the one that training uses, or the store's."""
        return self.training_precision or (self.kinds[0] if self.kinds else None)

    @property
    def uses_stored_precision(self) -> bool:
        """True when the store's precision, which only bf16 gives here, is used because no option contradicts it."""
        if not (self._has_one_stored_precision and self._options_leave_precision_open):
            return False
        without = effective_precision(self.manifest, self.backend_options)
        return without != self.stored_precision == effective_precision(self.manifest, self._in_bf16)

    @property
    def _has_one_stored_precision(self) -> bool:
        """True when it is clear which precision to keep: training names one, or the store holds one."""
        return self.training_precision is not None or len(self.kinds) == 1

    @property
    def _options_leave_precision_open(self) -> bool:
        """True when the options choose no precision, and no backend that cannot compute in bf16."""
        options = self.backend_options
        if options.autotune or options.bf16:
            return False
        return {options.backend, *options.by_graph.values()} <= {AUTO, "openvino"}

    @property
    def precision(self) -> str:
        """Precision under which clips are looked up in the store; any for an empty store."""
        if self.stored_precision is not None and (self.backend_options.autotune or self.uses_stored_precision):
            return self.stored_precision
        return effective_precision(self.manifest, self.backend_options)

    def resolve(self, autotune: AutotuneSettings, clips: Iterable[Clip]) -> ResolvedPrecision:
        """Choose the options once there is a clip to extract; ``clips`` are the clips to measure with, in order.

        Raises SettingsError ``held_precision`` when no backend here computes in the store's precision.
        """
        if self.backend_options.autotune:
            request = replace(
                autotune.request, stored_precision=self.stored_precision, fallback_folder=_choices_folder(self.store)
            )
            choice = autotune_backends(request, clips, notice=autotune.notice, stop=autotune.stop)
            autotune.notice(choice.line)
            return ResolvedPrecision(choice.backend_options, choice)
        if self.uses_stored_precision and self.stored_precision is not None:
            require_precision(self.manifest, self.stored_precision, self._in_bf16, autotune.request.facts)
            autotune.notice(
                f"warning: new clips are computed in {self.stored_precision}, like the features of this bundle in "
                f"{printable_path(self.store)}; to choose it explicitly: --precision {self.stored_precision}, or "
                f'precision = "{self.stored_precision}" under [work] of agent.toml'
            )
            return ResolvedPrecision(self._in_bf16)
        if self.kinds and self.precision not in self.kinds:
            autotune.notice(
                f"warning: {printable_path(self.store)} holds {', '.join(self.kinds)} features of this bundle, "
                f"those of new clips are {self.precision}: they are not trained on together"
            )
        return ResolvedPrecision(self.backend_options)

    @property
    def _in_bf16(self) -> BackendOptions:
        return replace(self.backend_options, bf16=True)


@dataclass(frozen=True)
class AutotuneSettings:
    """The measurement of ``--precision auto``: its request, and its callbacks."""

    request: AutotuneRequest
    notice: Callable[[str], None]
    stop: Callable[[], bool]


def _choices_folder(store: Path) -> Path:
    return store.with_name(f"{store.name}.choices")
