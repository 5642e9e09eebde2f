"""The judgement on one run of an engine: each output by name, row by row, within its limit."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...bundle.graph_records import Graph
from ...bundle.limits import ENGINE_RELATIVE, engine_cosine
from ..session import Array, Session
from .comparison_inputs import Setting

CONSTANT = 1e-6  # relative distance of rows that are one and the same
# A row that lies this much nearer to another row's result than to its own is the other's, whatever the limit allows.
NEARER = 0.5


class WrongResult(Exception):
    """An output beyond its limit; ``str`` is the evidence."""


class RightResult:
    """The right results of one output, a row each. ``array``: [rows, …]."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.is_judged_by_distance = array.dtype.kind == "f" and array.size > 0

    @functools.cached_property
    def flat(self) -> npt.NDArray[np.float32]:
        return np.asarray(self.array.reshape(len(self.array), -1), dtype=np.float32)

    @functools.cached_property
    def squares(self) -> npt.NDArray[np.float32]:
        return np.asarray(np.einsum("ij,ij->i", self.flat, self.flat))

    @functools.cached_property
    def largest(self) -> float:
        return float(np.abs(self.flat).max())

    @functools.cached_property
    def apart(self) -> npt.NDArray[np.float64]:
        """Distance of every two rows, [rows, rows]."""
        return np.array([[np.linalg.norm(a - b) for b in self.flat] for a in self.flat])

    @functools.cached_property
    def differ(self) -> bool:
        """Two rows differ by more than rounding: such rows show an engine that mixes rows up."""
        return bool(self.apart.max() > CONSTANT * np.sqrt(self.squares.max()))


@dataclass(frozen=True, eq=False)
class Expected:
    """Inputs and right results at one setting, by name; inputs are [rows, …]."""

    setting: Setting
    feeds: Mapping[str, Array]
    outputs: Mapping[str, RightResult]

    @property
    def rows(self) -> int:
        return len(next(iter(self.feeds.values())))


@dataclass(eq=False)
class Figures:
    """The output nearest to its limit, and counts."""

    shapes: set[tuple[str, int]] = field(default_factory=set)
    runs: int = 0
    share: float = -1.0  # of the limit that the error takes
    closest: str = ""

    def note(self, share: float, text: str) -> None:
        if share > self.share:
            self.share, self.closest = share, text


class Judge:
    """Compares outputs with the results that are right. Raises WrongResult."""

    def __init__(self, graph: Graph, figures: Figures, *, tf32: bool) -> None:
        self._graph = graph
        self._figures = figures
        self._cosine = engine_cosine(graph.precision, tf32=tf32)
        self._limit = ENGINE_RELATIVE if self._cosine is None else 1.0 - self._cosine

    def check_names(self, session: Session) -> None:
        for side, found, wanted in (
            ("inputs", session.inputs, self._graph.inputs),
            ("outputs", session.outputs, self._graph.outputs),
        ):
            if set(found) != {tensor.name for tensor in wanted}:
                raise WrongResult(f"its {side} are {', '.join(sorted(found))}, the graph's are others")

    def check(
        self, one: Expected, picks: npt.NDArray[np.intp], outputs: Iterator[tuple[str, Array]], where: str
    ) -> None:
        self._figures.runs += 1
        self._figures.shapes.add((str(one.setting), len(picks)))
        tokens: Array | None = None
        logits: Array | None = None
        for name, got in outputs:
            right = one.outputs[name]
            wanted = (len(picks), *right.array.shape[1:])
            if got.shape != wanted:
                raise WrongResult(f"output {name} has shape {list(got.shape)}, expected {list(wanted)} ({where})")
            tokens = got if name == "next_token" else tokens
            logits = got if name == "logits" else logits
            if right.is_judged_by_distance:
                for row, pick in enumerate(picks.tolist()):
                    shown = f"output {name}, row {row} of {len(picks)}"
                    self._check_row(got[row].reshape(-1).astype(np.float32), right, pick, shown, where)
            elif name != "next_token" and not np.array_equal(got, right.array[picks]):
                raise WrongResult(f"output {name} is {got.tolist()}, expected {right.array[picks].tolist()} ({where})")
        if tokens is not None and logits is not None:
            self._check_tokens(tokens, logits, one.outputs["logits"].array[picks], where)

    def _check_row(self, mine: Array, right: RightResult, pick: int, shown: str, where: str) -> None:
        if self._cosine is None:
            error, figure = float(np.abs(mine - right.flat[pick]).max()) / right.largest, "relative error "
            figure += f"{error:.2e}, allowed at most {self._limit:.0e}"
        else:
            error = 1.0 - _cosine(mine, right.flat[pick], float(right.squares[pick]))
            figure = f"cosine {1.0 - error:.5f}, allowed at least {self._cosine:.5f}"
        if not error <= self._limit:  # a NaN fails too
            raise WrongResult(f"{shown}: {figure} ({where})")
        self._figures.note(error / self._limit, f"closest to its limit: {shown}: {figure} ({where})")
        # Rows may lie so close together that another one's result is within the limit.
        own = float(np.linalg.norm(mine - right.flat[pick]))
        for other in np.flatnonzero((right.apart[pick] > 0) & (right.apart[pick] < 3 * own)):
            if np.linalg.norm(mine - right.flat[other]) < NEARER * own:
                raise WrongResult(f"{shown}: it is the result of another row ({where})")

    def _check_tokens(self, tokens: Array, logits: Array, right: Array, where: str) -> None:
        """The token's logit is the largest, both of the engine's and, but for rounding, of the right ones."""
        spread = np.sqrt(np.mean(np.square(right.astype(np.float64)), axis=1))
        # Of a logit: the limit is on a whole row's error, which is largest for some in 4 deviations.
        allowed = 4 * spread * (self._limit if self._cosine is None else np.sqrt(2 * self._limit))
        rows = np.arange(len(tokens))
        inside = (tokens >= 0) & (tokens < right.shape[1])
        chosen = np.where(inside, tokens, 0)
        for which, scores, slack in (("the engine's", logits, 0.01 * allowed), ("the graph's", right, 2 * allowed)):
            gap = scores.max(axis=1) - scores[rows, chosen]
            if not (inside & (gap <= slack)).all():
                row = int(np.flatnonzero(~(inside & (gap <= slack)))[0])
                raise WrongResult(
                    f"output next_token, row {row} of {len(rows)}: {int(tokens[row])} is not the likeliest by {which} "
                    f"logits, {int(scores[row].argmax())} is ({where})"
                )


def _cosine(got: Array, right: Array, square: float) -> float:
    """Cosine of two vectors; ``square``: of the second one's length. NaN where one is not finite."""
    if np.array_equal(got, right):
        return 1.0
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        return float(np.dot(got, right) / np.sqrt(np.dot(got, got) * np.float32(square)))
