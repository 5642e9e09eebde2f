"""Simulation of a federation in one process: the computation of the daemons without processes and network.

Initial model, local training, codec and aggregation are the daemons' own functions, called in the same order. A
simulated run and a real one with the same settings, rows and threads end in the same model, bit for bit. Left out
are waiting, certificates, gRPC and the disk.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..agent.training.dataset import FeatureTable
from ..agent.training.own_head import OwnHead
from ..agent.training.private import UNPROTECTED, Protection
from ..base.errors import DataError, UsageError
from ..coordinator.serving.model_broadcast import broadcast
from ..coordinator.strategies.algorithm import ServerState
from ..coordinator.strategies.claims import Claim, count_claims, learnt_examples
from ..coordinator.strategies.composition import (
    Aggregated,
    aggregate,
    end_round,
    first_state,
    needs_two_passes,
    round_limits,
)
from ..coordinator.strategies.contributions import Contribution, InMemoryContribution, distance
from ..coordinator.strategies.norm_bound import WINDOW, NormBound, learnt_norm
from ..coordinator.strategies.robust import trim_problem
from ..fedproto.head import HeadSpec, Params, TensorLayout, check_params, params_sha256
from ..fedproto.records import Evaluation, RunSettings
from ..fedproto.tensors import payload_bytes
from .silo_pool import SiloPool, SimulatedSilo

__all__ = [
    "Aggregation",
    "OwnParts",
    "Scenario",
    "SiloUpdate",
    "SimulatedRun",
    "SimulatedSilo",
    "simulate",
]


@dataclass(frozen=True, eq=False)
class SimulatedRun:
    """Result of a simulated run."""

    params: Params  # of the final model
    sha256: str  # params_sha256(params)
    rounds: tuple[Evaluation, ...]  # of the global model on the test rows after each round; () without test rows
    seconds: float  # wall clock of the whole run, evaluation included
    bytes_per_silo_round: int  # mean payload of the model down and the update up
    refused: tuple[tuple[int, str], ...] = ()  # (round, silo) of updates beyond the norm bound


@dataclass(frozen=True)
class Scenario:
    """Attack on a run, and the defences against it."""

    # The contribution that a silo sends in place of its honest one, given the round and its initial model.
    attack: Callable[[int, Params, InMemoryContribution], InMemoryContribution] = lambda _number, _base, honest: honest
    norm_times: float = 0.0  # the coordinator's [checks] norm_times; 0: nothing is refused
    examples_times: float = 0.0  # the coordinator's [checks] examples_times; 0: every claim counts in full
    protection: Protection = UNPROTECTED  # of every silo's updates


HONEST = Scenario()


@dataclass(frozen=True, eq=False)
class SiloUpdate:
    """A silo's part of a round, as an aggregation that is handed in gets it.

    Attributes:
        silo: The silo's name.
        examples: Rows that it trained on.
        params: Its trained parameters by name, float32, read-only.
    """

    silo: str
    examples: int
    params: Params = field(repr=False)


# The next model from the round's model and the updates, in ascending order of silo name.
Aggregation = Callable[[Params, Sequence[SiloUpdate]], Mapping[str, npt.NDArray[Any]]]


@dataclass(frozen=True, eq=False)
class OwnParts:
    """Parts of a run that its caller hands in; None: as the run's settings say."""

    head: OwnHead | None = None  # in place of ``run.head``, with the same inputs and outputs
    aggregation: Aggregation | None = None  # in place of the coordinator's part of ``run.strategy``


AS_SET = OwnParts()


def simulate(
    run: RunSettings,
    silos: Sequence[SimulatedSilo],
    *,
    test: FeatureTable | None = None,
    threads: int = 1,
    workers: int = 1,
    on_round: Callable[[int], None] = lambda _: None,
    scenario: Scenario = HONEST,
    own: OwnParts = AS_SET,
) -> SimulatedRun:
    """Run ``run.rounds`` rounds in which every silo answers, like daemons with ``work.threads = threads``.

    ``workers`` silos train at a time, each on ``threads`` cores. The result does not depend on ``workers``;
    ``threads=1`` with a worker per core is fastest. ``on_round`` is called with the number of every closed
    round. ``run.min_silos`` and ``run.deadline_s`` are ignored. ``scenario``: hostile silos, and the coordinator's
    checks against them (without quarantine: a refused silo tries again in the next round). ``own``: a head or an
    aggregation that is handed in.

    Raises DataError for silos or tables that do not fit the run, as training does (``diverged``), and for an
    aggregation whose result is no model (``bad_aggregation``). Raises UsageError for a trimmed mean that would leave
    out no silo.
    """
    _check(run, silos, test)
    started = time.perf_counter()
    evaluations = []
    spec, two_passes = own.head or run.head, own.aggregation is not None or needs_two_passes(run.strategy)
    guard = _Checks(run, spec, scenario)
    with SiloPool(run, spec, silos, scenario.protection, threads=threads, workers=workers) as pool:
        params, state = pool.first_params(), first_state(run)
        # With a lossy codec every silo makes the initial model itself.
        down = payload_bytes(spec) if run.codec == "fp32" else 0
        received_bytes = 0
        for number in range(1, run.rounds + 1):
            received_bytes += down * len(silos)
            parts: Iterable[Contribution] = guard.admitted(number, params, pool.contributions(number, params))
            if two_passes:
                parts = list(parts)
            if own.aggregation is None:
                aggregated = aggregate(run.strategy, spec, params, parts, state, len(silos))
            else:
                aggregated = _aggregated_by(own.aggregation, run, spec, params, parts, state)
            made = broadcast(run.codec, spec, params, aggregated)
            params, state = made.params, made.state
            down = len(made.payload) or payload_bytes(spec)
            if test is not None and len(test):
                evaluations.append(pool.evaluate(params, test))
            on_round(number)
    size = round((received_bytes + pool.sent_bytes) / (run.rounds * len(silos)))
    seconds = time.perf_counter() - started
    return SimulatedRun(params, params_sha256(params), tuple(evaluations), seconds, size, tuple(guard.refused))


def _aggregated_by(
    aggregation: Aggregation,
    run: RunSettings,
    spec: TensorLayout,
    base: Params,
    parts: Iterable[Contribution],
    state: ServerState,
) -> Aggregated:
    """Aggregate a round's updates as its caller does. Raises DataError (``bad_aggregation``)."""
    result = aggregation(
        _read_only(base), [SiloUpdate(part.silo, part.examples, _read_only(part.params)) for part in parts]
    )
    if not isinstance(result, Mapping):
        raise _bad_aggregation(f"it returned {type(result).__name__}, expected the next model's tensors by name")
    try:
        params = {name: np.asarray(result[name]).astype(np.float32) for name in spec.shapes if name in result}
        check_params(spec, params, whose="its result")
    except (DataError, TypeError, ValueError) as error:
        raise _bad_aggregation(str(error)) from error
    return end_round(params, state, run.strategy.average_last)


def _read_only(params: Params) -> Params:
    views = {name: tensor.view() for name, tensor in params.items()}
    for view in views.values():
        view.flags.writeable = False
    return views


def _bad_aggregation(problem: str) -> DataError:
    return DataError(
        f"the aggregation that was handed in: {problem}",
        fix="return {name: array} with the names and shapes of the round's model, every value finite",
        code="bad_aggregation",
    )


class _Checks:
    """Applies the attack to the contributions, drops those that the coordinator would refuse, and counts claims."""

    def __init__(self, run: RunSettings, spec: TensorLayout, scenario: Scenario) -> None:
        self._run = run
        self._spec = spec
        self._trial = scenario
        self._sent: deque[dict[str, Claim]] = deque(maxlen=WINDOW)  # of the last rounds, by silo
        self.refused: list[tuple[int, str]] = []

    def admitted(self, number: int, base: Params, parts: Iterable[InMemoryContribution]) -> Iterable[Contribution]:
        """Return the contributions that the round's strategy gets; all in memory where claims may be cut."""
        run, scenario = self._run, self._trial
        largest = {
            silo: (max(one.norm or 0.0 for one in sent), max(one.examples for one in sent))
            for silo in sorted({silo for claims in self._sent for silo in claims})
            if (sent := [claims[silo] for claims in self._sent if silo in claims])
        }
        learnt = learnt_norm({silo: norm for silo, (norm, _) in largest.items()})
        bound = NormBound(self._spec, run.train, scenario.norm_times, number, learnt)
        claims: dict[str, Claim] = {}
        self._sent.append(claims)
        passed = self._passed(number, base, parts, bound, claims)
        if scenario.examples_times <= 0:
            return passed
        kept = list(passed)
        examples = learnt_examples({silo: claim for silo, (_, claim) in largest.items()})
        times = scenario.examples_times, scenario.norm_times
        limits = round_limits(run.strategy, claims.values(), examples, *times)
        return count_claims(kept, claims, limits, base)

    def _passed(
        self,
        number: int,
        base: Params,
        parts: Iterable[InMemoryContribution],
        bound: NormBound,
        claims: dict[str, Claim],
    ) -> Iterator[InMemoryContribution]:
        """Yield what the silos send, without what is refused; ``claims`` gets every one that passed."""
        run, scenario = self._run, self._trial
        for part in parts:
            sent = scenario.attack(number, base, part)
            bounded = scenario.norm_times > 0 or scenario.examples_times > 0
            norm = distance(sent.params, base) if bounded else None
            if norm is not None:
                try:
                    bound.check(norm, sent.examples, run.codec, whose=f"update from silo '{sent.silo}'")
                except DataError:
                    self.refused.append((number, sent.silo))
                    continue
            claims[sent.silo] = Claim(sent.examples, norm)
            yield sent


def _check(run: RunSettings, silos: Sequence[SimulatedSilo], test: FeatureTable | None) -> None:
    names = [silo.name for silo in silos]
    if not silos or len(set(names)) < len(names):
        raise DataError(
            f"silos {sorted(names)}: expected one or more with different names",
            fix="give every silo a name of its own",
            code="bad_silos",
        )
    if problem := trim_problem(run.strategy, len(silos)):
        raise UsageError(problem, fix="a larger trim, more silos, or the median")
    for silo in silos:
        if not len(silo.train):
            raise DataError(
                f"silo '{silo.name}' has no rows to train on",
                fix="leave it out, or use a partition that gives every silo at least one row",
                code="empty_silo",
            )
        _check_table(run.head, silo.train, f"silo '{silo.name}'")
    if test is not None:
        _check_table(run.head, test, "the test rows")


def _check_table(head: HeadSpec, table: FeatureTable, whose: str) -> None:
    expected = (len(table.y), head.inputs)
    if table.x.shape != expected:
        raise DataError(
            f"{whose}: features {list(table.x.shape)}, expected {list(expected)}",
            fix="use features of one width for all silos and the test",
            code="bad_table",
        )
    if len(table) and not 0 <= int(table.y.min()) <= int(table.y.max()) < head.outputs:
        raise DataError(
            f"{whose}: classes up to {table.y.max()}, the head has {head.outputs}",
            fix="give the head as many outputs as there are labels",
            code="bad_table",
        )
