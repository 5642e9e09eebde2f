"""Several devices by a worker process each. Clips are handed out one by one; results come back here, in any order.

A worker that ends (killed, a CUDA error, no memory) costs no clip. The clips that it held are suspects then. A suspect
runs alone in a worker, its successor or another that has nothing left, so that a second end names one clip: that one
has failed. A worker that ends again and again without a result is not started any more.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..base.channel import Failed, ready_channels
from ..base.child_process import ChildEnded, ChildProcess
from ..base.errors import DataError, FlamestError, SettingsError
from ..base.files import Stopped, printable_path
from .backends.opening import GraphPlacement
from .clip_records import Caption, Clip, ClipFeatures, WorkerCrash
from .devices import Device
from .extractor import ExtractionResult
from .pipeline_options import PipelineSizes
from .video.read_ahead import FINISH_WITHIN_S
from .worker_messages import (
    LARGEST_PAYLOAD,
    ClipDone,
    ClipFailed,
    ExtractClip,
    Notice,
    Setup,
    WorkerAnswer,
    WorkerOpened,
    WorkerSetup,
)

PROGRAM = "flamest.runtime.worker_process"
CRASH_CODE = "worker_crashed"
MOST_ATTEMPTS = 2  # of one clip
MOST_RESTARTS = 5  # of a worker that finishes nothing: a clip that ends workers takes two
SILENT_S = 1200.0  # a worker that has clips and says nothing for so long hangs: a clip takes 2 × 120 s, a run 360 s
OPENING_S = 7200.0  # the same while it opens its networks: an engine for a graph is built, then compared for 1800 s
_AHEAD = 8  # clips that a worker has in addition to those that it works on
_MOST_MESSAGES = 32  # of one worker that are taken before clips are handed out again
_POLL_S = 0.2
_MESSAGE_S = 60.0


@dataclass(eq=False)
class _Task:
    number: int
    clip: Clip
    attempts: int = 0  # workers that ended while they held it

    @property
    def suspect(self) -> bool:
        return self.attempts > 0


@dataclass(eq=False)
class _Worker:
    name: str  # its device, and a number from the second on
    device: Device
    setup: WorkerSetup
    process: ChildProcess
    opened: WorkerOpened | None = None
    held: dict[int, _Task] = field(default_factory=dict)
    restarts: int = 0  # since a clip was last finished
    heard: float = field(default_factory=time.monotonic)
    peak_mb: float = 0.0

    @property
    def room(self) -> int:
        """Clips that it can be given now: none next to a suspect."""
        if self.opened is None or any(task.suspect for task in self.held.values()):
            return 0
        return self.opened.in_work + _AHEAD - len(self.held)

    @property
    def hangs(self) -> str:
        """The thing that it did not do in time; empty while it still may."""
        silent = time.monotonic() - self.heard
        if self.opened is None:
            return f"did not open its networks within {OPENING_S:g} s" if silent > OPENING_S else ""
        return f"gave no result for {SILENT_S:g} s" if self.held and silent > SILENT_S else ""


class DeviceWorkers:
    """An extractor on several devices. Open with ``DeviceWorkers.open``; one thread at a time; close it when done."""

    def __init__(self, notice: Callable[[str], None]) -> None:
        self._notice = notice
        self._workers: list[_Worker] = []
        self._suspects: deque[_Task] = deque()
        self._last_error: FlamestError | None = None
        self.placements: dict[str, GraphPlacement] = {}  # by graph, of the first worker
        self.pipeline: dict[str, PipelineSizes] = {}  # by worker: its device, "cpu (2)" for a second one on it
        self.crashes: list[WorkerCrash] = []

    @classmethod
    def open(
        cls,
        setups: Sequence[tuple[Device, WorkerSetup]],
        *,
        notice: Callable[[str], None] = lambda _: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> DeviceWorkers:
        """Start a worker for each entry: the first one alone, since what it builds is there for the others.

        Raises the error of a worker that cannot open the bundle's networks, as ``open_extractor`` would; SettingsError
        for one that ends by itself or does not start; Stopped.
        """
        workers = cls(notice)
        try:
            names = _worker_names([device for device, _ in setups])
            named = [(name, *each) for name, each in zip(names, setups, strict=True)]
            for some in (named[:1], named[1:]):
                workers._workers += [_start(*each) for each in some]
                while any(worker.opened is None for worker in workers._workers):
                    if stop():
                        raise Stopped
                    for _ in workers._receive(_POLL_S):
                        pass
                    if workers.crashes:
                        raise workers._last_error or _none_left_error()
        except BaseException:
            workers.close()
            raise
        workers.pipeline = {name: workers.pipeline[name] for name in names if name in workers.pipeline}
        return workers

    @property
    def processes(self) -> list[ChildProcess]:
        """The workers' processes."""
        return [worker.process for worker in self._workers]

    @property
    def peak_mb(self) -> float:
        """Largest resident memory of the workers and their decoders so far, MB."""
        return sum(worker.peak_mb for worker in self._workers)

    def extract_all(
        self, clips: Iterable[Clip], *, stop: Callable[[], bool] = lambda: False
    ) -> Generator[ExtractionResult, None, None]:
        """Yield the outcome of every clip, in any order. Raises Stopped when ``stop`` returns True and no clip is
        finished a few seconds later; the error of the last worker when none can be started any more."""
        tasks = (_Task(number, clip) for number, clip in enumerate(clips))
        until = None
        while True:
            exhausted = self._hand_out(tasks)
            if exhausted and not self._suspects and not any(worker.held for worker in self._workers):
                return
            if not self._workers:
                raise self._last_error or _none_left_error()
            found: list[ExtractionResult] = []
            failure: Exception | None = None
            try:
                for result in self._receive(_POLL_S if exhausted or not self._room() else 0.0):
                    found.append(result)
            except Exception as error:  # raised after what was there before it
                failure = error
            for number, result in enumerate(found, 1):
                yield replace(result, more=number < len(found))
            if failure is not None:
                raise failure
            if found:
                until = None
            elif stop():
                until = until or time.monotonic() + FINISH_WITHIN_S
                if time.monotonic() > until:
                    raise Stopped

    def close(self) -> None:
        """End the workers; clips in work are given up."""
        for worker in self._workers:
            worker.process.channel.close()  # all of them are asked before one is waited for
        for worker in self._workers:
            worker.process.close()

    def _room(self) -> bool:
        return any(worker.room > 0 for worker in self._workers)

    def _hand_out(self, tasks: Iterator[_Task]) -> bool:
        """Give a clip to each worker that has room, the least busy first; True when there are no new ones.

        A worker that holds nothing takes a suspect. The others get new clips, and with the last of those they run
        empty: then all of them take suspects.
        """
        exhausted = False
        for worker in sorted(self._workers, key=lambda worker: -worker.room):
            if worker.room <= 0:
                continue
            if self._suspects and not worker.held:
                task = self._suspects.popleft()
            elif exhausted or (new := next(tasks, None)) is None:
                exhausted = True
                continue
            else:
                task = new
            if not worker.held:
                worker.heard = time.monotonic()
            worker.held[task.number] = task
            text = os.fsencode(task.clip.path).decode("latin-1")
            part = task.clip.segment
            segment = (part.start_us, part.end_us) if part else None
            worker.process.send(ExtractClip(task.number, text, task.clip.sha256, segment))
        return exhausted

    def _receive(self, timeout_s: float) -> Iterator[ExtractionResult]:
        """Take what the workers have to say, a few messages of each; yield the outcomes of clips."""
        for turn in range(_MOST_MESSAGES):
            ready = ready_channels([worker.process.channel for worker in self._workers], 0.0 if turn else timeout_s)
            for worker in tuple(self._workers):
                if worker.process.channel in ready:
                    yield from self._take(worker)
                elif reason := worker.hangs:
                    worker.process.kill()
                    yield from self._replace(worker, reason)
            if not ready:
                return

    def _take(self, worker: _Worker) -> Iterator[ExtractionResult]:
        try:
            answer, payload = worker.process.receive(
                WorkerAnswer, timeout_s=_MESSAGE_S, largest_payload=LARGEST_PAYLOAD
            )
        except ChildEnded as ended:
            yield from self._replace(worker, str(ended))
            return
        worker.heard = time.monotonic()
        if isinstance(answer, Notice):
            self._notice(answer.text)
        elif isinstance(answer, WorkerOpened):
            worker.opened = answer
            self._note_opened(worker.name, answer)
        elif isinstance(answer, Failed):
            self._last_error = answer.error()
            worker.process.close()
            yield from self._replace(worker, f"{answer.code}: {answer.message}")
        elif (task := worker.held.pop(answer.number, None)) is not None:
            worker.restarts = 0
            if isinstance(answer, ClipDone):
                worker.peak_mb = max(worker.peak_mb, answer.peak_mb)
                yield ExtractionResult(task.clip, _features(answer, payload))
            else:
                yield ExtractionResult(task.clip, None, _error(answer))

    def _note_opened(self, name: str, opened: WorkerOpened) -> None:
        self.pipeline[name] = PipelineSizes(opened.readers, opened.batch, opened.captions)
        for each in opened.placements:
            placement = GraphPlacement(each.graph, each.backend, each.where, each.precision, ())
            self.placements.setdefault(each.graph, placement)

    def _replace(self, worker: _Worker, reason: str) -> Iterator[ExtractionResult]:
        """A worker has ended: its clips become suspects, or have failed, and it is started again if that may help."""
        self._workers.remove(worker)
        self.crashes.append(WorkerCrash(str(worker.device), reason, len(worker.held)))
        for task in worker.held.values():
            task.attempts += 1
            if task.attempts < MOST_ATTEMPTS:
                self._suspects.append(task)
            else:
                yield ExtractionResult(task.clip, None, _crash_error(task, worker.device, reason))
        if worker.opened is not None and worker.restarts < MOST_RESTARTS:
            self._restart(worker)

    def _restart(self, worker: _Worker) -> None:
        try:
            again = _start(worker.name, worker.device, worker.setup)
        except SettingsError as error:  # the other workers go on
            self._last_error = error
            self.crashes.append(WorkerCrash(str(worker.device), error.message, 0))
            return
        again.restarts, again.peak_mb = worker.restarts + 1, worker.peak_mb
        self._workers.append(again)


def _worker_names(devices: Sequence[Device]) -> list[str]:
    """The devices' names: "cpu", "cpu (2)"."""
    seen: Counter[Device] = Counter()
    names = []
    for device in devices:
        seen[device] += 1
        names.append(f"{device} ({seen[device]})" if seen[device] > 1 else str(device))
    return names


def _start(name: str, device: Device, setup: WorkerSetup) -> _Worker:
    try:
        process = ChildProcess(PROGRAM, environment=device.environment())
    except ChildEnded as ended:
        raise SettingsError(
            f"the worker process for {device} does not start: {ended}",
            fix="free memory and processes, or leave --device out to run in one process",
            code=CRASH_CODE,
        ) from ended
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has ended: ``receive`` says how
        process.channel.send(Setup(), pickle.dumps(setup))
    return _Worker(name, device, setup, process)


def _features(answer: ClipDone, payload: bytearray) -> ClipFeatures:
    vectors = np.frombuffer(payload, dtype="<f4").astype(np.float32)
    return ClipFeatures(
        vlm=vectors[: answer.vlm],
        cnn=vectors[answer.vlm :],
        caption=Caption(answer.caption, answer.token_ids),
        keyframe=answer.keyframe,
        keyframe_times_s=answer.times_s,
        fingerprint=answer.fingerprint,
        precision=answer.precision,
        stages_ms=answer.stages_ms,
        warnings=answer.warnings,
    )


def _error(answer: ClipFailed) -> DataError:
    return DataError(answer.message, fix=answer.fix, code=answer.code)


def _crash_error(task: _Task, device: Device, reason: str) -> DataError:
    return DataError(
        f"{printable_path(task.clip.path)}: {task.attempts} worker processes ended while they had it, the last one on "
        f"{device} ({reason})",
        fix="run the command again, which tries it again; if it fails again, convert the video or remove it",
        code=CRASH_CODE,
    )


def _none_left_error() -> SettingsError:
    return SettingsError(
        "no worker process is left: each ended several times without a result",
        fix="the report's crashes say why; a smaller --batch needs less memory; flamest-agent doctor examines the GPU",
        code=CRASH_CODE,
    )
