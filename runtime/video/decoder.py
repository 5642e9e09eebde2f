"""Video file -> candidate frames -> the networks' frames, through a decoder process.

A clip takes two requests: ``candidates`` gives small frames, uniform over those that were really decoded; the caller
chooses from them, and ``prepared`` gives the chosen ones in the form that each network takes (``keyframes``: at full
size). Resizing is the decoder process's work: several readers do not wait for each other, and little is sent.
Everything that can be wrong with a file ends in a DataError with one of these codes, and the next clip is served:

    video_unreadable  no such file, no permission
    video_not_a_file  a folder, a pipe, a device; nothing is opened that could block
    outside_folder    a link, when it was opened, to a place outside of the folder that clips must be in
    video_empty       no bytes
    video_not_video   not one of the container formats that are read (video_file.ALLOWED_FORMATS)
    video_no_stream   sound only, or a cover picture
    video_unknown_codec  a codec that this ffmpeg does not know
    video_damaged     cut off or damaged so that no frame can be decoded
    video_too_large   frames above the pixel limit, or more memory than a clip may take
    video_timeout     slower than a clip may be
    segment_outside   the segment begins at or after the video's end
    segment_empty     no frame is shown in the segment
    decoder_crashed   the decoder process crashed, or gave an invalid answer
    decoder_killed    it was killed from outside, as the system does when memory is short: not the file's fault

A decoder that does not run at all (PyAV does not load, no memory to begin with) is no clip's fault: SettingsError
``decoder_broken``, with the last line of its stderr.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...base.child_process import ChildEnded, ChildProcess
from ...base.errors import DataError, InvariantError, MissingExtra, SettingsError
from ...base.files import Stopped, printable_path
from ..bundle.manifest import KeyframeRule
from ..clip_records import Candidates, FrameTimes, Keyframes, Segment
from ..keyframes import Indices
from .decoder_answers import A, check_frame_times, checked_answer, checked_refusal
from .decoder_errors import clip_error, invalid_answer_error, opened_clip
from .decoder_messages import (
    DECODER_BROKEN,
    FRAME_TIME_BYTES,
    MOST_FRAMES,
    Answer,
    DecodeRefused,
    FramePart,
    FramesListed,
    FramesRead,
    ListFrames,
    MakePiece,
    OpenClip,
    Opened,
    PieceMade,
    ReadFrames,
    Request,
)
from .decoder_start import await_ready, broken_error, start_decoder
from .preprocessing import FrameInput, Frames

RESTART_CODES = frozenset({"video_too_large"})  # memory may be exhausted: the next clip gets a new process
CRASH_CODES = frozenset({"decoder_crashed", "decoder_killed"})  # another attempt, in a fresh process, may succeed

LONGEST_PIECE_S = 120.0  # of a proxy video, in one request
LARGEST_PIECE = 64 << 20  # bytes


@dataclass(frozen=True)
class DecodeLimits:
    """Limits of one clip."""

    largest_frame: int = 4096 * 2304  # pixels
    held_bytes: int = 256 << 20  # decoded frames kept; longer clips are decoded twice
    timeout_s: float = 120.0  # wall clock, for each of the two requests
    largest_file: int = 16_000_000_000  # bytes, checked before a file is hashed: hours of 4K video
    inside: Path | None = None  # real path of the folder that a clip's file must be in; None: anywhere


@dataclass(frozen=True, eq=False)
class PreparedFrames:
    """Frames in the form that networks take."""

    parts: tuple[Frames, ...]  # in the order of the request, a row per frame
    prepare_ms: float  # milliseconds that the decoder process spent on resizing and normalising, as it reports them


class VideoDecoder:
    """Decodes clips in a child process. One thread at a time; close it when done.

    ``rule``: None where no candidates are asked for. ``whole_bytes``: candidates are uint8, not normalised, instead of
    float32.
    The process starts with ``start`` or the first clip, and again after a clip that killed it.
    Raises MissingExtra when PyAV is not installed; SettingsError ``decoder_broken``, at the first clip, when it
    does not load.
    """

    def __init__(
        self, rule: KeyframeRule | None, limits: DecodeLimits | None = None, *, whole_bytes: bool = False
    ) -> None:
        if importlib.util.find_spec("av") is None:
            raise MissingExtra("av", extra="agent")
        self._rule = rule
        self._form = FrameInput(rule.preprocessing, whole_bytes) if rule else None
        self._limits = limits or DecodeLimits()
        self._process: ChildProcess | None = None
        self._is_ready = False
        self._interrupted = False
        self._works = False  # a process has prepared frames, so every package that it needs is there
        self._opened = 0
        self._name = ""  # of the clip opened last, for errors
        self.peak_kb = 0  # largest resident memory of a decoder process, KiB

    @property
    def pid(self) -> int | None:
        """Of the decoder process; None before the first clip and after ``close``."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process, unless it runs, so that the first clip need not wait for it."""
        if self._process is None or not self._process.running:
            self._end()
            self._process = start_decoder()

    def candidates(self, path: Path, segment: Segment | None = None, *, next_us: int | None = None) -> Candidates:
        """Decode the clip, or a segment of it, and return its candidate frames, prepared for the keyframe graph.

        Segments of one file in a row open it once, and decode little else of it than themselves. ``next_us``: where the
        next one begins, if before this one ends; frames that both show are then decoded once. Raises DataError with a
        code of the list above; Stopped after ``interrupt``.
        """
        rule, form = self._rule, self._form
        if rule is None or form is None:
            raise InvariantError(f"candidates of {path} were requested from a decoder without a rule")
        request = OpenClip(
            candidates=rule.candidates,
            form=form,
            largest_frame=self._limits.largest_frame,
            held_bytes=self._limits.held_bytes,
            cpu_s=self._cpu_s,
            segment=(segment.start_us, segment.end_us) if segment else None,
            next_us=next_us,
        )
        self._opened += 1
        self._name = f"{printable_path(path)}#{segment}" if segment else printable_path(path)
        with opened_clip(path, self._limits.inside) as fd:
            answer, payload = self._ask(request, Opened, _bytes(rule.candidates, form), fd)
        (pixels,) = self._arrays(payload, [(form.dtype, (len(answer.t_s), *form.shape))])
        return Candidates(
            path=path,
            number=self._opened,
            pixels=pixels,
            t_s=np.array(answer.t_s, dtype=np.float64),
            frames=answer.frames,
            warnings=answer.warnings,
            decoded=answer.decoded,
        )

    def frame_times(self, path: Path) -> FrameTimes:
        """Times of all frames, from the container alone: nothing but the first frame is decoded.

        Segments of this file that are asked for next find it open. Raises DataError as ``candidates``.
        """
        request = ListFrames(self._limits.largest_frame, self._cpu_s)
        self._opened += 1
        self._name = printable_path(path)
        with opened_clip(path, self._limits.inside) as fd:
            answer, payload = self._ask(request, FramesListed, MOST_FRAMES * FRAME_TIME_BYTES, fd)
        frames = (answer.frames,)
        t_us, keys = self._arrays(payload, [(np.dtype(np.int64), frames), (np.dtype(np.uint8), frames)])
        with self._no_invalid_answer():
            check_frame_times(t_us, keys, answer.end_us)
        return FrameTimes(t_us, np.flatnonzero(keys), answer.end_us, answer.exact)

    def proxy(self, path: Path, *, start_s: float, seconds: float) -> bytes:
        """The piece of a video from ``start_s`` on, at most ``seconds`` long, as a WebM file that browsers play.

        Without sound, VP8, at most 640 pixels wide and high; presentation times count from the video's first frame.
        Raises DataError as ``candidates``: ``segment_outside`` after the video's end.
        """
        piece = Segment.of_seconds(max(0.0, start_s), max(0.0, start_s) + min(max(seconds, 0.001), LONGEST_PIECE_S))
        request = MakePiece(piece.start_us, piece.end_us, self._limits.largest_frame, self._cpu_s)
        self._opened += 1
        self._name = f"{printable_path(path)}#{piece}"
        with opened_clip(path, self._limits.inside) as fd:
            _, payload = self._ask(request, PieceMade, LARGEST_PIECE, fd)
        return bytes(payload)

    def keyframes(self, candidates: Candidates, chosen: Indices) -> Keyframes:
        """Return the chosen candidates (row numbers, not decreasing) at full size.

        ``candidates`` are those of the last clip opened; InvariantError otherwise.
        """
        (rgb,) = self.prepared(candidates, [(chosen, None)]).parts
        return Keyframes(rgb=rgb, t_s=candidates.t_s[chosen])

    def prepared(self, candidates: Candidates, wanted: Sequence[tuple[Indices, FrameInput | None]]) -> PreparedFrames:
        """Return chosen candidates for several networks at once: for each its row numbers, in any order, and the form
        that it takes; None is uint8 [height, width, 3], at the video's own size.

        ``candidates`` are those of the last clip opened; InvariantError otherwise. Raises DataError as ``candidates``.
        """
        if candidates.number != self._opened or self._process is None:
            raise InvariantError(f"frames of {candidates.path} were requested after another clip was opened")
        request = ReadFrames(tuple(FramePart(tuple(rows.tolist()), form) for rows, form in wanted), self._cpu_s)
        full_size = 3 * self._limits.largest_frame
        largest = sum(_bytes(len(rows), form) if form else len(rows) * full_size for rows, form in wanted)
        answer, payload = self._ask(request, FramesRead, largest)
        forms = [
            (form.dtype, (len(rows), *form.shape))
            if form
            else (np.dtype(np.uint8), (len(rows), answer.height, answer.width, 3))
            for rows, form in wanted
        ]
        return PreparedFrames(tuple(self._arrays(payload, forms)), answer.prepare_ms)

    def interrupt(self) -> None:
        """Give up the request in progress, and all later ones: they raise Stopped. From any thread."""
        self._interrupted = True
        if (process := self._process) is not None:
            process.interrupt()

    def close(self) -> None:
        """Let the process end by itself, as it does without its connection."""
        if self._process is not None:
            self._process.close()
        self._end()

    def __enter__(self) -> VideoDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _cpu_s(self) -> int:
        return max(1, int(self._limits.timeout_s))  # decoding runs on one thread

    def _ask(self, request: Request, kind: type[A], largest_payload: int, fd: int | None = None) -> tuple[A, bytearray]:
        """Send one request and read its answer; every failure of the clip becomes a DataError.

        Without ``fd`` the request is about the open clip, and goes to the process that opened it.
        """
        process = self._process if fd is None and self._process is not None else self._ready()
        process.send(request, descriptor=fd)
        try:
            answer, payload = process.receive(Answer, timeout_s=self._limits.timeout_s, largest_payload=largest_payload)
        except ChildEnded as ended:
            self._end()
            self._check_not_interrupted()
            raise clip_error(ended, self._name, self._limits.timeout_s) from ended
        if isinstance(answer, DecodeRefused):
            raise self._refusal(answer)
        with self._no_invalid_answer():
            answer = checked_answer(answer, kind)
        self._works = self._works or kind is FramesRead
        self.peak_kb = max(self.peak_kb, answer.peak_kb)
        return answer, payload

    def _refusal(self, answer: DecodeRefused) -> DataError | SettingsError:
        """The error of a clip that the process refused."""
        with self._no_invalid_answer():
            answer = checked_refusal(answer)
            if answer.code == DECODER_BROKEN and self._works:
                raise ValueError("it says that it does not run, and it does")
        if answer.code in RESTART_CODES:
            self._end()
        if answer.code == DECODER_BROKEN:
            return broken_error(answer.message)
        fix = answer.fix or "convert the video again, or remove it"
        return DataError(f"{self._name} {answer.message}", fix=fix, code=answer.code)

    @contextlib.contextmanager
    def _no_invalid_answer(self) -> Iterator[None]:
        """End the process whose answer the block finds invalid: its ValueError becomes the clip's DataError."""
        try:
            yield
        except ValueError as error:
            self._end()
            raise invalid_answer_error(self._name, str(error)) from error

    def _arrays(
        self, payload: bytearray, forms: Sequence[tuple[np.dtype[Any], tuple[int, ...]]]
    ) -> list[npt.NDArray[Any]]:
        """The payload as arrays, checked: a decoder that a hostile file controls may answer anything."""
        sizes = [math.prod(shape) * dtype.itemsize for dtype, shape in forms]
        if any(min(shape) < 1 for _, shape in forms) or len(payload) != sum(sizes):
            self._end()
            raise invalid_answer_error(self._name, f"{len(payload)} bytes for {[list(shape) for _, shape in forms]}")
        found, start = [], 0
        for (dtype, shape), size in zip(forms, sizes, strict=True):
            part = np.frombuffer(payload, dtype, math.prod(shape), start).reshape(shape)
            found.append(np.require(part, requirements="A"))  # a copy where bytes before it make it unaligned
            start += size
        return found

    def _ready(self) -> ChildProcess:
        """A process that can decode. Raises SettingsError ``decoder_broken`` when it does not get ready."""
        self.start()
        assert self._process is not None
        self._check_not_interrupted()  # after the start: whoever interrupts kills the process, or is seen here
        if not self._is_ready:
            try:
                await_ready(self._process)
            except SettingsError:
                self._end()
                self._check_not_interrupted()
                raise
            self._is_ready = True
        return self._process

    def _check_not_interrupted(self) -> None:
        if self._interrupted:
            raise Stopped

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
        self._process, self._is_ready = None, False


def _bytes(frames: int, form: FrameInput) -> int:
    return frames * math.prod(form.shape) * form.dtype.itemsize
