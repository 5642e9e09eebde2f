"""An engine compared with its ONNX graph on the CPU, at the shapes of its use: the proof that it may be used.

Every shape is run several times, other shapes in between and with other data each time, so that a result of the last
shape, of the last data or of another row is seen. Then the same with CUDA graphs, so that each is captured and replayed
with fresh data: an engine that is wrong with them alone runs without them. Each output is compared by name, row by row,
within the limits of ``runtime/bundle/limits.py``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ....base.errors import FlamestError
from ...bundle.graph_records import EngineOptions, Graph
from ..bf16_emulation import emulate_bf16, emulate_fp16
from ..onnxruntime_cpu import open_session
from ..session import Array, Feed, Rows, Session, Shape, Value
from ..unavailable import Code, unavailable
from .comparison_inputs import LARGE_BATCH, InputSource, Setting, compared_settings
from .comparison_judge import Expected, Figures, Judge, RightResult, WrongResult
from .profile import graph_uses
from .verdict import Verdict

ROWS, FEW_ROWS = 7, 3  # different rows that batches are drawn from; where the CPU takes long over one, few
SLOW_S = 3.0  # for one row of a graph on the CPU
PLAIN_VISITS = 2  # of each shape, two runs and one
# With CUDA graphs: the second run is captured and the third replays it where its results get the same addresses, which
# may alternate.
FEWEST_GRAPH_RUNS, MOST_GRAPH_RUNS, MOST_LONE_RUNS = 4, 8, 16
EMULATED = {"bfloat16": emulate_bf16, "float16": emulate_fp16}
IN_ROWS = ("past_", "cross_")  # inputs that a caption keeps where the session computes

OpenEngine = Callable[[bool], Session]  # argument: with CUDA graphs


@dataclass(frozen=True, eq=False)
class ComparedGraph:
    """A graph to compare an engine with."""

    name: str
    graph: Graph
    model: bytes  # its ONNX file, checked
    options: EngineOptions  # of the engine
    vocabulary: int = 0  # token ids are below
    # The graph whose outputs are inputs of this one ("vision" for "text"): its record and ONNX file.
    source: tuple[Graph, bytes] | None = None


def compare_engine(
    subject: ComparedGraph, open_engine: OpenEngine, describe: Callable[[str], None] = lambda text: None
) -> Verdict:
    """Compare the engine that ``open_engine`` opens with the graph; the verdict may be ``wrong``.

    ``describe`` gets what is being done. Takes seconds for small graphs; for BLIP and Slow about a minute on a few
    cores, most of it on the CPU. Raises the errors of opening and running the engine, and ENGINE_WRONG where the graph
    cannot be computed on the CPU: that is no verdict on the engine, and may pass.
    """
    started, figures = time.monotonic(), Figures()
    describe(f"graph {subject.name}: the ONNX graph on the CPU")
    try:
        expected = _right_results(subject)
        judge = Judge(subject.graph, figures, tf32=subject.options.tf32)
        runs = _Runs(subject, expected, judge, describe)
        with _opened(open_engine, cuda_graphs=False) as session:
            runs.run_all(session, PLAIN_VISITS, "without CUDA graphs")
    except WrongResult as wrong:
        return _verdict(figures, started, wrong=str(wrong))
    try:
        _compare_replays(runs, open_engine)
    except WrongResult as problem:
        return _verdict(figures, started, remarks=(f"CUDA graphs stay off: {problem}",))
    except FlamestError as problem:
        remark = f"CUDA graphs stay off until they can be compared: {problem.message}"
        return _verdict(figures, started, remarks=(remark,), passing=True)
    return _verdict(figures, started, cuda_graphs=True)


def _compare_replays(runs: _Runs, open_engine: OpenEngine) -> None:
    """Compare a replayed CUDA graph of every shape, all in one session, then those that it did not replay alone.

    A session captures a bounded number of graphs. Raises WrongResult, also for a shape that is never replayed: nothing
    is known about its graph.
    """
    with _opened(open_engine, cuda_graphs=True) as session:
        missing = runs.run_until_replayed(session, runs.shapes, MOST_GRAPH_RUNS)
        runs.run_all(session, 1, "with CUDA graphs")
    if len(missing) == len(runs.shapes):
        raise WrongResult("none could be captured")
    for shape in missing:
        with _opened(open_engine, cuda_graphs=True) as session:
            for one, batch in runs.run_until_replayed(session, [shape], MOST_LONE_RUNS):
                raise WrongResult(f"none was replayed at {one.setting}, batch {batch}, in {MOST_LONE_RUNS} runs")


@contextlib.contextmanager
def _opened(open_engine: OpenEngine, *, cuda_graphs: bool) -> Iterator[Session]:
    session = open_engine(cuda_graphs)
    try:
        yield session
    finally:
        close = getattr(session, "close", None)  # a session of a GPU gives its memory back
        if close is not None:
            close()


def _verdict(
    figures: Figures,
    started: float,
    *,
    cuda_graphs: bool = False,
    wrong: str = "",
    remarks: tuple[str, ...] = (),
    passing: bool = False,
) -> Verdict:
    seconds = round(time.monotonic() - started, 1)
    return Verdict(len(figures.shapes), figures.runs, cuda_graphs, figures.closest, seconds, wrong, remarks, passing)


def _right_results(subject: ComparedGraph) -> list[Expected]:
    try:
        return _expected_results(subject)
    except FlamestError as error:
        evidence = f"graph '{subject.name}': there is nothing to compare its engine with: {error.message}"
        raise unavailable(Code.ENGINE_WRONG, evidence, fix=error.fix).error() from error


def _expected_results(subject: ComparedGraph) -> list[Expected]:
    """Inputs and results of every setting; the graph and its source are opened on the CPU, one after the other."""
    options = subject.options
    settings = compared_settings(subject.graph, graph_uses(subject.graph, options.max_batch, options.usual_batch))
    rows = ROWS
    image: dict[str, Array] = {}
    if subject.source is not None:
        graph, model = subject.source
        session = open_reference(graph, model)
        rows = _affordable_rows(session, graph)
        inputs = {tensor.name for tensor in subject.graph.inputs}
        feeds = InputSource(graph, rows, 0, {}).draw({}, 0, {})
        image = {name: array for name, array in session.run(feeds).items() if name in inputs}
        del session
    session = open_reference(subject.graph, subject.model)
    if subject.source is None:
        rows = _affordable_rows(session, subject.graph, settings[0], subject.vocabulary)
    source = InputSource(subject.graph, rows, subject.vocabulary, image)
    found = []
    for number, setting in enumerate(settings):
        feeds = source.draw(setting.sizes, number, source.past(session, setting.sizes.get("past", 0)))
        outputs = session.run(feeds)
        kept = _steady_rows(session, feeds, outputs)
        if len(kept) < rows:
            feeds, outputs = ({name: array[kept] for name, array in side.items()} for side in (feeds, outputs))
        found.append(Expected(setting, feeds, {name: RightResult(array) for name, array in outputs.items()}))
    _check_that_it_proves(subject.name, found)
    return found


def open_reference(graph: Graph, model: bytes) -> Session:
    """The graph on ONNX Runtime's CPU provider; half precision is emulated in fp32."""
    emulate = next((how for half, how in EMULATED.items() if half in graph.dtype_histogram), None)
    return open_session(model if emulate is None else emulate(model), shown=graph.file)


def _affordable_rows(session: Session, graph: Graph, setting: Setting | None = None, vocabulary: int = 1) -> int:
    sizes = {} if setting is None else setting.sizes
    one = InputSource(graph, 1, vocabulary, {})
    started = time.monotonic()
    session.run(one.draw(sizes, 0, {}))
    return ROWS if time.monotonic() - started < SLOW_S else FEW_ROWS


def _steady_rows(session: Session, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> npt.NDArray[np.intp]:
    """Rows whose whole-number results do not hinge on rounding. ``next_token`` is judged by its logits instead."""
    rows = len(next(iter(feeds.values())))
    words = [name for name, array in outputs.items() if array.dtype.kind == "i" and name != "next_token"]
    if not words:
        return np.arange(rows)
    random = np.random.default_rng(0)
    noisy = {name: _with_noise(array, random) for name, array in feeds.items()}
    again = session.run(noisy, words)
    same = [(again[name] == outputs[name]).reshape(rows, -1).all(axis=1) for name in words]
    steady: npt.NDArray[np.intp] = np.flatnonzero(np.all(same, axis=0))
    return steady


def _with_noise(array: Array, random: np.random.Generator) -> Array:
    if array.dtype == np.uint8:
        moved = array.astype(np.int16) + random.integers(-1, 2, size=array.shape)
        return np.asarray(np.clip(moved, 0, 255), dtype=np.uint8)
    if array.dtype.kind != "f":
        return array
    return np.asarray(array * (1 + 0.01 * random.standard_normal(array.shape)), dtype=array.dtype)


def _check_that_it_proves(name: str, found: list[Expected]) -> None:
    """Raise WrongResult for a reference that any engine would equal: zero, constant, or not finite."""
    for word in found[0].outputs:
        rights = [one.outputs[word] for one in found if one.outputs[word].is_judged_by_distance]
        if any(not np.isfinite(right.array).all() for right in rights):
            raise WrongResult(f"output {word} of the ONNX graph itself is not finite on the CPU: nothing can be shown")
        if rights and not any(right.differ for right in rights):
            raise WrongResult(
                f"output {word} of the ONNX graph is zero or the same for all inputs: any engine would equal it, so "
                "nothing is shown"
            )
    if any(one.rows < 2 for one in found):
        raise WrongResult(f"graph '{name}': too few of the seeded inputs have a result that rounding cannot change")


@dataclass(frozen=True, eq=False)
class _Runs:
    """Runs of an engine at every setting, judged."""

    subject: ComparedGraph
    expected: list[Expected]
    judge: Judge
    describe: Callable[[str], None]

    @property
    def shapes(self) -> list[tuple[Expected, int]]:
        """Every setting with every number of rows."""
        return [(one, batch) for one in self.expected for batch in one.setting.batches]

    def run_all(self, session: Session, visits: int, how: str) -> None:
        """Run every shape twice at once, then again in an order that has turned round, after different ones."""
        self.judge.check_names(session)
        self.describe(f"graph {self.subject.name}: compared {how}")
        feeder, shapes = _Feeder(session, self.subject.graph, self.expected), self.shapes
        for visit in range(visits):
            for place in range(len(shapes)) if visit % 2 == 0 else range(len(shapes) - 1, -1, -1):
                if visit > 0 and shapes[place][1] > LARGE_BATCH:
                    continue  # gigabytes of results
                for again in range(1 if visit else 2):
                    turn, run = 2 * (place + visit) + again, visit + again + 1
                    self._run(session, feeder, *shapes[place], turn=turn, how=f"run {run} {how}")

    def run_until_replayed(
        self, session: Session, shapes: list[tuple[Expected, int]], most: int
    ) -> list[tuple[Expected, int]]:
        """Run each of ``shapes``, with other data each time, until a CUDA graph of it was replayed twice (of a large
        batch once), at most ``most`` times. Return those that no graph was replayed for."""
        missing = []
        self.describe(f"graph {self.subject.name}: compared with CUDA graphs")
        feeder = _Feeder(session, self.subject.graph, self.expected)
        for place, (one, batch) in enumerate(shapes):
            before, wanted = getattr(session, "replays", 0), 1 if batch > LARGE_BATCH else 2
            for turn in range(most):
                self._run(session, feeder, one, batch, turn=place + turn, how=f"run {turn + 1} with CUDA graphs")
                if turn + 1 >= FEWEST_GRAPH_RUNS and getattr(session, "replays", 0) >= before + wanted:
                    break
            if getattr(session, "replays", 0) == before:
                missing.append((one, batch))
        return missing

    def _run(self, session: Session, feeder: _Feeder, one: Expected, batch: int, *, turn: int, how: str) -> None:
        picks = (2 * np.arange(batch) + turn) % one.rows
        values = session.run_values(feeder.feeds(one, picks))
        outputs = ((name, values.pop(name).numpy()) for name in list(values))  # one at a time on the host
        self.judge.check(one, picks, outputs, f"{one.setting}, batch {batch}, {how}")


@dataclass(frozen=True, eq=False)
class _OnHost:
    """An array as a Value: Rows give it the type of their input."""

    array: Array

    def numpy(self) -> Array:
        return self.array


class _Feeder:
    """Feeds of one session: host arrays, and Rows of the session for what a caption keeps where it is computed."""

    def __init__(self, session: Session, graph: Graph, expected: list[Expected]) -> None:
        self._session = session
        names = () if session.computes_on_host else tuple(tensor.name for tensor in graph.inputs)
        self._kept = {name for name in names if name.startswith(IN_ROWS)}
        self._largest: dict[tuple[str, Shape], int] = {}
        for one in expected:
            for name in self._kept:
                key = (name, one.feeds[name].shape[1:])
                self._largest[key] = max(self._largest.get(key, 0), one.setting.batches[-1])
        self._rows: dict[tuple[str, Shape], Rows] = {}
        self._pools: dict[tuple[str, int], Rows] = {}  # by the address of the array, which lives as long

    def feeds(self, one: Expected, picks: npt.NDArray[np.intp]) -> dict[str, Feed]:
        return {name: self._feed(name, array, picks) for name, array in one.feeds.items()}

    def _feed(self, name: str, array: Array, picks: npt.NDArray[np.intp]) -> Feed:
        if name not in self._kept or not array.size:
            return np.ascontiguousarray(array[picks])
        key = (name, array.shape[1:])
        if key not in self._rows:
            self._rows[key] = self._session.rows(name, (self._largest[key], *key[1]))
        pool = self._pool(name, array)
        for row, pick in enumerate(picks.tolist()):
            self._rows[key].put(row, pool, pick)
        return self._rows[key].first(len(picks))

    def _pool(self, name: str, array: Array) -> Value:
        """The rows to pick from, once where the session computes."""
        source = (name, array.ctypes.data)
        if source not in self._pools:
            self._pools[source] = self._session.rows(name, array.shape)
            for row in range(len(array)):
                self._pools[source].put(row, _OnHost(array[row : row + 1]), 0)
        return self._pools[source].first(len(array))
