"""A worker process: the program that device_workers.py starts, an extractor on one device.

It ends with its connection. Ctrl-C and SIGTERM, which go to the whole process group or cgroup, are the parent's to
handle.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..base.channel import Channel, Failed
from ..base.errors import FlamestError, SettingsError
from ..base.process import no_core_dumps, peak_resident_kb
from .backends.opening import OpeningOptions, machine_facts
from .clip_records import Clip, Segment
from .extractor import ExtractionResult, Extractor, open_extractor
from .worker_messages import ClipDone, ClipFailed, ExtractClip, Notice, Placement, Setup, WorkerOpened, WorkerSetup

SETUP_BYTES = 1 << 20  # bytes


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    no_core_dumps()  # a core file would hold the silo's frames
    parent = Channel.to_parent()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, EOFError):
        _, pickled = parent.receive(Setup, largest_payload=SETUP_BYTES)
        setup: WorkerSetup = pickle.loads(pickled)
        try:
            with _open(setup, parent) as extractor:
                _work(parent, extractor)
        except FlamestError as error:
            parent.send(Failed.of(error))


def _open(setup: WorkerSetup, parent: Channel) -> Extractor:
    if setup.needs_gpu and machine_facts().gpu is None:
        raise SettingsError(
            f"the worker sees no GPU: {machine_facts().driver_problem}",
            fix="nvidia-smi shows whether the GPU is still there; leave --device out to run without it",
            code="no_device",
        )
    opening = OpeningOptions(setup.backend_options, setup.threads, notice=lambda text: parent.send(Notice(text)))
    extractor = open_extractor(
        setup.bundle, opening=opening, pipeline=setup.pipeline, limits=setup.limits, trusted=setup.trusted
    )
    placements = tuple(
        Placement(each.graph, each.backend, each.where, each.precision) for each in extractor.placements.values()
    )
    sizes = extractor.sizes
    parent.send(WorkerOpened(placements, sizes.readers, sizes.batch, sizes.captions, extractor.most_in_work))
    return extractor


def _work(parent: Channel, extractor: Extractor) -> None:
    asked = _Asked(parent)
    for done in extractor.extract_all(asked.clips(), in_order=False):
        number = asked.finish(done.clip)
        answer, payload = _answer(number, done, extractor)
        parent.send(answer, payload)


class _Asked:
    """The clips that the parent asks for, received in a thread of its own."""

    def __init__(self, parent: Channel) -> None:
        self._parent = parent
        self._coming: queue.SimpleQueue[ExtractClip] = queue.SimpleQueue()
        self._numbers: dict[int, int] = {}  # by the Clip's id: the same clip may be asked for twice
        threading.Thread(target=self._receive, name="flamest-parent", daemon=True).start()

    def clips(self) -> Iterator[Clip | None]:
        """Yield the clips; None where the next one has not come and others are in work."""
        while True:
            try:
                request = self._coming.get(block=not self._numbers)
            except queue.Empty:
                yield None
                continue
            segment = Segment(*request.segment) if request.segment else None
            clip = Clip(path=_path(request.path), sha256=request.sha256, segment=segment)
            self._numbers[id(clip)] = request.number
            yield clip

    def finish(self, clip: Clip) -> int:
        return self._numbers.pop(id(clip))

    def _receive(self) -> None:
        try:
            while True:
                request, _ = self._parent.receive(ExtractClip)
                self._coming.put(request)
        except (EOFError, OSError, ValueError):
            os._exit(0)  # nobody waits for results; the decoders end with their connections


def _path(text: str) -> Path:
    return Path(os.fsdecode(text.encode("latin-1")))


def _answer(number: int, done: ExtractionResult, extractor: Extractor) -> tuple[ClipDone | ClipFailed, bytes]:
    features, error = done.features, done.error
    if features is None:
        assert error is not None
        return ClipFailed(number, error.code, error.message, error.fix), b""
    answer = ClipDone(
        number=number,
        vlm=len(features.vlm),
        caption=features.caption.text,
        token_ids=features.caption.token_ids,
        keyframe=features.keyframe,
        times_s=features.keyframe_times_s,
        fingerprint=features.fingerprint,
        precision=features.precision,
        stages_ms=features.stages_ms,
        warnings=features.warnings,
        peak_mb=peak_resident_kb() * 1024 / 1e6 + extractor.decoder_peak_mb,
    )
    return answer, np.concatenate([features.vlm, features.cnn]).astype("<f4").tobytes()


if __name__ == "__main__":
    main()
