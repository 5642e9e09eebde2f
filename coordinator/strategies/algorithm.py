"""The parts that a round is made of, and the record in which an algorithm says which of them it brings.

    updates ──adjust──> updates ──combine──> target (float64) ──step──> the next model

Any number of algorithms may adjust the updates; one combines them to a target; at most one moves the model there by its
own rule (without, the target is the next model). An algorithm whose server step is not made of these parts brings a
``whole_round``. composition.py puts them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ...fedproto.head import Params, TensorLayout
from ...fedproto.records import Strategy
from .contributions import Contribution, Sums

Arrays = Mapping[str, Sums]  # an algorithm's own state, by name: FedDyn's ``h``, FedAvgM's ``velocity``
Step = tuple[Params, Arrays]  # the next model (float32) and the algorithm's state after the round


@dataclass(frozen=True, eq=False)
class RoundInput:
    """Everything that a round's next model follows from."""

    strategy: Strategy
    spec: TensorLayout
    base: Params  # the model that the round started from
    contributions: Iterable[Contribution]  # ascending silo names; iterated more than once where ``two_passes``
    arrays: Arrays  # the algorithm's state after the last round; empty before the first
    silos: int  # all that are enrolled, with an update or without


@dataclass(frozen=True, eq=False)
class ServerState:
    """State that the coordinator carries from round to round in addition to the model."""

    rounds_left: int  # rounds that must still close
    arrays: Arrays = field(default_factory=dict)  # of the algorithms in use, in the order in which files hold them
    residual: Sums = field(default_factory=dict)  # left out of the model by a lossy codec (serving/model_broadcast.py)
    tail: Sums = field(default_factory=dict)  # sum of the models of the last rounds, for ``average_last``
    tail_count: int = 0  # models in ``tail``


def no_problems(strategy: Strategy) -> list[str]:
    """Return no problems: for an algorithm that has no settings of its own."""
    return []


@dataclass(frozen=True)
class Algorithm:
    """One algorithm of ``[run.strategy]``: when it is in use, its settings' rules, and its parts of a round."""

    setting: str  # the key that switches it on
    enabled: Callable[[Strategy], bool]
    validate: Callable[[Strategy], list[str]] = no_problems  # problems, each beginning with the key's name
    adjust: Callable[[RoundInput], Iterable[Contribution]] | None = None
    combine: Callable[[RoundInput], Sums] | None = None
    step: Callable[[RoundInput, Sums], Step] | None = None
    whole_round: Callable[[RoundInput], Step] | None = None  # instead of the three; goes with no other algorithm
    carries: tuple[str, ...] = ()  # names of the arrays in its state
    weighs: bool = False  # combines by the contributions' weights, so that claims need limits (claims.py)
    far_counts: bool = False  # without weights every update moves the model as far as it goes: a limit (claims.py)
    two_passes: bool = False  # iterates over the contributions more than once
