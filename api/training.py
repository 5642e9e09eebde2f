"""Training in this process: a simulated federation, or one model on the rows of one silo or of all."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import numpy as np

from ..agent.training.dataset import FeatureTable
from ..agent.training.own_head import OwnHead, open_trainer
from ..base.errors import DataError, UsageError
from ..base.process import usable_cores
from ..base.progress import progress_bar
from ..experiments.simulation import Aggregation, OwnParts, SimulatedSilo
from ..experiments.simulation import simulate as simulate_run
from ..fedproto.bounds import MAX_DEADLINE_S
from ..fedproto.codecs import CODECS, Codec
from ..fedproto.head import HeadSpec
from ..fedproto.recipes import Recipe
from ..fedproto.records import RunSettings, Strategy
from .checks import labelled_features, shown, whole_number
from .features import Features, shared_labels, union
from .options import (
    HEAD_KEYS,
    STRATEGY_KEYS,
    TRAIN_KEYS,
    OwnHeadGiven,
    RunOptions,
    StrategyName,
    TrainOptions,
    check_names,
    head_of,
    record,
    strategy_settings,
    train_settings,
    with_recipe,
)
from .runs import SIMULATION, Run, class_counts, predictions
from .text import counted_classes

CENTRALISED, LOCAL = "centralised", "local"  # trainings of the clips of several silos, and of one
HeadGiven = Literal["mlp", "rgcf"] | HeadSpec | OwnHeadGiven
Given = Mapping[str, Features] | Sequence[Features]


def simulate(
    silos: Given,
    *,
    test: Features | None = None,
    rounds: int = 80,
    recipe: Recipe = "default",
    strategy: StrategyName | Strategy | Aggregation | type = "fedavg",
    head: HeadGiven = "mlp",
    seed: int = 0,
    codec: Codec = "fp32",
    workers: int | None = None,
    progress: bool = True,
    **settings: Unpack[RunOptions],
) -> Run:
    """Simulate a federation: what coordinator and silos compute, without processes and network.

    The same arguments give the same model to the bit, however many workers there are; and the one that daemons give
    with the same settings, names of silos, rows and ``work.threads = 1``.

    Args:
        silos: Features of each silo: ``split``'s, or a mapping of one's own. In a sequence they are called
            ``silo-1``, ``silo-2``, …; a silo's name is part of the seed of its shuffles.
        test: Clips that the model is measured on after each round.
        rounds: Rounds; in each one every silo takes part.
        recipe: Settings that are not given: ``default``, chosen for accuracy on several data sets, or ``paper``
            (docs/guides/recipes.md).
        strategy: A name: ``fedavg``, ``fedprox`` (with ``mu``), ``feddyn`` (``alpha``), ``fedavgm``
            (``server_momentum``), ``fedadam`` (``server_adam``), ``median`` or ``trimmed_mean`` (``trim``). Or an
            aggregation of one's own: a function that gets the round's model (arrays by name) and a sequence of
            ``SiloUpdate``, and returns the next model. A class is called without arguments once a run, and may keep
            state from round to round; of an object a copy is used.
        head: ``mlp``, ``rgcf`` (the paper's gated fusion), or a head of one's own: an object as ``Head`` describes
            it, or a class or function that makes one of the numbers of inputs and classes.
        seed: Seed of the first model and of all shuffles.
        codec: How models travel: ``fp32``, ``fp16``, ``int8`` or ``sparse_int8``.
        workers: Silos that train at the same time, each on one core; one per core unless given.
        progress: Show a bar on a terminal, and a line every ten seconds elsewhere.
        **settings: Settings of the strategy, of local training and of the head, in place of the recipe's: see
            ``RunOptions``.

    Returns:
        The run, with the final model and its figures.

    Raises:
        UsageError: A setting does not exist, is out of range or does not go with the strategy. The fix lists those
            that exist.
        DataError: The features do not fit each other, a silo has no labelled clip, training diverged, or something
            that was handed in returned what cannot be used.
        MissingExtra: A package of the extras ``agent`` and ``coordinator`` is not installed.
    """
    check_names(settings, (*STRATEGY_KEYS, *TRAIN_KEYS, *HEAD_KEYS))
    chosen = with_recipe(recipe, settings, head=head, strategy=strategy)
    if codec not in CODECS:
        raise UsageError(f"there is no codec {codec!r}; known: {', '.join(CODECS)}", fix="choose one of those")
    seed = whole_number("seed", seed, least=0, like=0)
    workers = usable_cores() if workers is None else whole_number("workers", workers, least=1, like=4)
    name, rule, aggregation = strategy_settings(strategy, settings, chosen)
    data = _Data.of(_named(silos), test)
    given_head = head_of(head, chosen, data.width, len(data.labels), data.vlm_width)
    run = _run_settings(SIMULATION, data, given_head, rounds, seed, chosen)
    run = _replaced(run, strategy=rule, codec=codec, min_silos=len(data.silos))
    own = OwnParts(given_head if isinstance(given_head, OwnHead) else None, aggregation)
    parts = [SimulatedSilo(silo, table) for silo, table in data.silos.items()]
    with _progress("simulating", rounds, progress) as advance:
        done = simulate_run(run, parts, test=data.test, workers=workers, on_round=lambda _: advance(), own=own)
    return Run(
        settings=run,
        strategy=name,
        head=given_head,
        params=done.params,
        evaluations=done.rounds,
        class_counts=data.class_counts,
        silo_names=tuple(data.silos),
        truth=data.test.y,
        predicted=predictions(given_head, done.params, data.test.x),
        seconds=done.seconds,
        bytes_per_silo_round=done.bytes_per_silo_round,
        own_strategy=aggregation is not None,
    )


def train(
    features: Features | Given,
    *,
    test: Features | None = None,
    rounds: int = 80,
    recipe: Recipe = "default",
    head: HeadGiven = "mlp",
    seed: int = 0,
    threads: int | None = None,
    progress: bool = True,
    **settings: Unpack[TrainOptions],
) -> Run:
    """Train one model without a federation: the centralised one of all silos, or that of one silo alone.

    ``fl.train(silos, test=test)`` and ``fl.train(silos["silo-1"], test=test)`` are what a federated run of as many
    rounds is compared with: the same first model and the same number of epochs.

    Args:
        features: The training clips; of several silos all are used together.
        test: Clips that the model is measured on after each round.
        rounds: Rounds of ``epochs`` epochs; the optimiser starts again in each.
        recipe: As for ``simulate``.
        head: As for ``simulate``.
        seed: Seed of the first model and of all shuffles.
        threads: Cores to use; all unless given. The last bits of the result depend on it.
        progress: Show a bar on a terminal, and a line every ten seconds elsewhere.
        **settings: Settings of training and of the head, in place of the recipe's: see ``TrainOptions``.

    Returns:
        The run, with the final model and its figures.

    Raises:
        UsageError: A setting does not exist or is out of range, or these are no features.
        DataError: The features do not fit each other, none has a label, or training diverged.
        MissingExtra: A package of the extra ``agent`` is not installed.
    """
    from ..agent.training.local import train_locally

    check_names(settings, (*TRAIN_KEYS, *HEAD_KEYS))
    chosen = with_recipe(recipe, settings, head=head)
    seed = whole_number("seed", seed, least=0, like=0)
    threads = None if threads is None else whole_number("threads", threads, least=1, like=4)
    name = LOCAL if isinstance(features, Features) else CENTRALISED
    together = features if isinstance(features, Features) else union(list(_named(features).values()))
    data = _Data.of({name: together}, test)
    given_head = head_of(head, chosen, data.width, len(data.labels), data.vlm_width)
    run = _run_settings(name, data, given_head, rounds, seed, chosen)
    started = time.perf_counter()
    with _progress("training", rounds, progress) as advance:
        made = train_locally(
            open_trainer(given_head, threads=threads),
            data.silos[name],
            data.test,
            run.train,
            rounds=rounds,
            seed=seed,
            on_round=lambda _: advance(),
        )
    return Run(
        settings=run,
        strategy=name,
        head=given_head,
        params=made.params,
        evaluations=made.evaluations,
        class_counts=data.class_counts,
        silo_names=(name,),
        truth=data.test.y,
        predicted=predictions(given_head, made.params, data.test.x),
        seconds=time.perf_counter() - started,
        bytes_per_silo_round=0,
    )


@dataclass(frozen=True, eq=False)
class _Data:
    """Rows to train and to measure on, with the classes and the bundle that they share."""

    silos: dict[str, FeatureTable]
    test: FeatureTable
    labels: tuple[str, ...]
    fingerprint: str
    width: int
    vlm_width: int

    @classmethod
    def of(cls, silos: Mapping[str, Features], test: Features | None) -> _Data:
        """Raises DataError when the features do not fit each other, or a silo has no labelled clip."""
        if test is not None:
            labelled_features("test", test, Features)
        everything = [*silos.values(), *([test] if test is not None else [])]
        labels = shared_labels(everything)
        if len(labels) < 2:
            raise DataError(
                f"the features are of {counted_classes(len(labels))}, expected 2 or more",
                fix="give features of two or more classes",
                code="one_class",
            )
        first = everything[0]
        tables = {name: features.table(labels) for name, features in silos.items()}
        if empty := [name for name, table in tables.items() if not len(table)]:
            raise DataError(
                f"silo '{empty[0]}' has no labelled clip to train on",
                fix="leave it out, or use a partition that gives every silo at least one",
                code="empty_silo",
            )
        rows = test.table(labels) if test is not None else None
        held_out = rows or FeatureTable(np.empty((0, first.width), np.float32), np.empty(0, np.int64))
        return cls(tables, held_out, labels, first.fingerprint, first.width, first.vlm_width)

    @property
    def class_counts(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return class_counts({name: table.y for name, table in self.silos.items()}, len(self.labels))


def _named(silos: Given) -> dict[str, Features]:
    named = dict(silos) if isinstance(silos, Mapping) else _numbered(silos)
    if wrong := [name for name in named if not isinstance(name, str) or not name.strip()]:
        raise UsageError(
            f"a silo is called {shown(wrong[0])}, expected a name",
            fix="name the silos: {'north': a, 'south': b}; or give a list, whose silos are silo-1, silo-2, …",
        )
    if not named or not all(isinstance(each, Features) for each in named.values()):
        raise UsageError(
            "silos: expected the features of one or more silos, by name or in a list",
            fix="silos, test = fl.split(f, silos=4)",
        )
    return named


def _numbered(silos: Any) -> dict[str, Any]:
    listed = silos if isinstance(silos, list | tuple) else []
    return {f"silo-{number}": features for number, features in enumerate(listed, start=1)}


def _run_settings(
    name: str, data: _Data, head: HeadSpec | OwnHead, rounds: int, seed: int, settings: Mapping[str, Any]
) -> RunSettings:
    # Settings describe built-in heads only: for one that is handed in they hold the numbers of inputs and classes.
    spec = head if isinstance(head, HeadSpec) else HeadSpec(data.width, len(data.labels), ())
    made = RunSettings(
        run=name,
        labels=data.labels,
        head=spec,
        rounds=rounds,
        min_silos=1,
        deadline_s=MAX_DEADLINE_S,  # a simulation has none
        fingerprint=data.fingerprint,
        seed=seed,
        train=train_settings(settings),
    )
    return _replaced(made)


def _replaced(settings: RunSettings, **changes: Any) -> RunSettings:
    """Return ``settings`` with changes. Raises UsageError for what no silo would accept."""
    made = record({key: getattr(settings, key) for key in settings.__struct_fields__} | changes, RunSettings)
    if problems := made.problems():
        raise UsageError("; ".join(problems), fix="see help(flamest.simulate)")
    return made


@contextlib.contextmanager
def _progress(title: str, rounds: int, shown: bool) -> Iterator[Callable[[], None]]:
    if not shown:
        yield lambda: None
        return
    with progress_bar(title, rounds, unit="round" if rounds == 1 else "rounds") as bar:
        yield bar.advance
