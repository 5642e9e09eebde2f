"""Video file -> candidate frames -> keyframes, through the decoder process.

A clip is asked for twice: ``candidates`` gives small frames, uniform over those that were really
decoded; from them the caller chooses, and ``keyframes`` gives the chosen ones at full size.
Everything that can be wrong with a file ends in a DataError with one of these codes, and the next
clip is served:

    video_unreadable  no such file, no permission
    video_not_a_file  a folder, a pipe, a device; nothing is opened that could block
    video_empty       no bytes
    video_not_video   not one of the container formats that are read (decoded_clip.FORMATS)
    video_no_stream   sound only, or a cover picture
    video_unknown_codec  a codec that this ffmpeg does not know
    video_damaged     cut off or damaged so that no frame can be decoded
    video_too_large   frames above the pixel limit, or more memory than a clip may take
    video_timeout     slower than a clip may be
    decoder_crashed   the decoder process died, or answered what cannot be
    decoder_killed    it was killed from outside, as the system does when memory is short: not the file's fault

A decoder that does not run at all is no clip's fault: SettingsError ``decoder_broken`` (decoder.py).

The decoder process as its parent sees it: started, known to be ready, ended, and how it ended.

A process that cannot decode at all (PyAV that does not load, no memory to begin with) never says ``Ready``.
That is an error of the installation, with the last line that it wrote to stderr, and no clip's fault.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import signal
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from ...base.errors import DataError, InvariantError, MissingExtra, SettingsError
from ...base.files import printable_path
from ..bundle.manifest import KeyframeRule
from ..keyframes import Indices
from ..records import Candidates, Keyframes
from .decoder_messages import (
    BROKEN,
    FramesRead,
    OpenClip,
    Opened,
    ReadFrames,
    Ready,
    Refused,
    Request,
    receive_answer,
    send,
)

FRESH_AFTER = frozenset({"video_too_large"})  # memory is in doubt: the next clip gets a new process
DIED = frozenset({"decoder_crashed", "decoder_killed"})  # another try, in a fresh process, may go well

A = TypeVar("A", Opened, FramesRead)
T = TypeVar("T", np.float32, np.uint8)


@dataclass(frozen=True)
class DecodeLimits:
    """What one clip may take."""

    largest_frame: int = 4096 * 2304  # pixels
    held_bytes: int = 256 << 20  # decoded frames kept; longer clips are decoded twice
    timeout_s: float = 120.0  # wall clock, for each of the two requests


class VideoDecoder:
    """The parent's side. Not for use by several threads at once; close it when done.

    The process starts with ``start`` or the first clip, and again after a clip that killed it.
    Raises MissingExtra when PyAV is not installed; SettingsError ``decoder_broken``, at the first clip, when it
    does not load.
    """

    def __init__(self, rule: KeyframeRule, limits: DecodeLimits | None = None) -> None:
        if importlib.util.find_spec("av") is None:
            raise MissingExtra("av", extra="agent")
        self._rule = rule
        self._limits = limits or DecodeLimits()
        self._process = DecoderProcess()
        self._opened = 0
        self.peak_kb = 0  # largest resident memory of a decoder process, KiB

    def start(self) -> None:
        """Start the process now, so that the first clip need not wait for it."""
        self._process.start()

    def candidates(self, path: Path) -> Candidates:
        """Decode the clip and give its candidate frames, prepared for the keyframe graph.

        Raises DataError with a code of the list above.
        """
        size = self._rule.preprocessing.size
        request = OpenClip(
            candidates=self._rule.candidates,
            preprocessing=self._rule.preprocessing,
            largest_frame=self._limits.largest_frame,
            held_bytes=self._limits.held_bytes,
            cpu_s=self._cpu_s,
        )
        self._opened += 1
        fd = _open_regular(path)
        try:
            answer, payload = self._ask(request, Opened, self._rule.candidates * 3 * size * size * 4, path, fd)
        finally:
            os.close(fd)
        return Candidates(
            path=path,
            number=self._opened,
            pixels=self._shaped(payload, np.float32, (len(answer.t_s), 3, size, size), path),
            t_s=np.array(answer.t_s, dtype=np.float64),
            frames=answer.frames,
            warnings=answer.warnings,
        )

    def keyframes(self, candidates: Candidates, chosen: Indices) -> Keyframes:
        """The chosen candidates (row numbers, not decreasing) at full size.

        ``candidates`` are those of the last clip opened; InvariantError otherwise.
        """
        if candidates.number != self._opened or self._process.link is None:
            raise InvariantError(f"keyframes of {candidates.path} were asked for after another clip was opened")
        request = ReadFrames(tuple(chosen.tolist()), self._cpu_s)
        largest = len(chosen) * self._limits.largest_frame * 3
        answer, payload = self._ask(request, FramesRead, largest, candidates.path)
        rgb = self._shaped(payload, np.uint8, (len(chosen), answer.height, answer.width, 3), candidates.path)
        return Keyframes(rgb=rgb, t_s=candidates.t_s[chosen])

    def close(self) -> None:
        self._process.close()

    def __enter__(self) -> VideoDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _cpu_s(self) -> int:
        return max(1, int(self._limits.timeout_s))  # decoding runs on one thread

    def _ask(
        self, request: Request, kind: type[A], largest_payload: int, path: Path, fd: int | None = None
    ) -> tuple[A, bytearray]:
        """Send one request and read its answer; every way in which a clip fails there becomes a DataError.

        Without ``fd`` the request is about the open clip, and goes to the process that opened it.
        """
        held = self._process.link if fd is None else None
        link = held or self._process.ready()
        link.settimeout(self._limits.timeout_s)
        try:
            send(link, request, fd=fd)
            answer, payload = receive_answer(link, largest_payload)
        except TimeoutError as error:
            self._process.end()
            raise _too_slow(path, self._limits) from error
        except (EOFError, ConnectionError) as error:
            raise self._died(path) from error
        except ValueError as error:
            raise self._nonsense(path, str(error)) from error
        if isinstance(answer, Refused):
            if answer.code in FRESH_AFTER:
                self._process.end()
            if answer.code == BROKEN:
                raise broken(answer.message)
            raise DataError(f"{printable_path(path)} {answer.message}", code=answer.code)
        if not isinstance(answer, kind):
            self._process.end()
            raise InvariantError(f"the decoder answered {type(answer).__name__}, expected {kind.__name__}")
        self.peak_kb = max(self.peak_kb, answer.peak_kb)
        return answer, payload

    def _shaped(
        self, payload: bytearray, dtype: type[T], shape: tuple[int, ...], path: Path
    ) -> np.ndarray[tuple[int, ...], np.dtype[T]]:
        """The payload as an array; a decoder that a file has taken over may answer anything."""
        if min(shape) < 1 or len(payload) != math.prod(shape) * np.dtype(dtype).itemsize:
            raise self._nonsense(path, f"{len(payload)} bytes for {list(shape)}")
        return np.frombuffer(payload, dtype=dtype).reshape(shape)

    def _died(self, path: Path) -> DataError:
        """The process has ended in the middle of a clip: by whom, as its status tells."""
        status = self._process.reaped()
        if status == -signal.SIGXCPU:
            return _too_slow(path, self._limits)
        if status == -signal.SIGKILL:
            return DataError(
                f"{printable_path(path)}: the decoder process was killed, as the system does when memory is short",
                fix="run it again with more memory free",
                code="decoder_killed",
            )
        return DataError(
            f"{printable_path(path)}: the decoder process died of it (status {status})", code="decoder_crashed"
        )

    def _nonsense(self, path: Path, problem: str) -> DataError:
        self._process.end()
        return DataError(
            f"{printable_path(path)}: the decoder's answer makes no sense: {problem}", code="decoder_crashed"
        )


def _open_regular(path: Path) -> int:
    """A descriptor of a regular file that holds something. A pipe or a device is refused, never waited for."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(f"cannot read {printable_path(path)}: {error.strerror}", code="video_unreadable") from error
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_size > 0:
        return fd
    os.close(fd)
    if stat.S_ISREG(status.st_mode):
        raise DataError(f"{printable_path(path)} is empty", code="video_empty")
    raise DataError(f"{printable_path(path)} is not a regular file", code="video_not_a_file")


def _too_slow(path: Path, limits: DecodeLimits) -> DataError:
    return DataError(
        f"{printable_path(path)} took longer than {limits.timeout_s:g} s to decode",
        fix="cut it into shorter clips",
        code="video_timeout",
    )


START_WITHIN_S = 120.0  # importing PyAV takes 0.3 s; from a slow disk under load much longer
END_WITHIN_S = 2.0
LONGEST_WORDS = 300  # characters of the last line


class DecoderProcess:
    """One process and the link to it, or none. Not for use by several threads at once."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._said_ready = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def link(self) -> socket.socket | None:
        """To the process that was started last, dead or alive; None after ``end``."""
        return self._link

    def start(self) -> None:
        """Start a process, unless one runs; it gets ready while the caller does other things."""
        if self._link is not None and self._process is not None and self._process.poll() is None:
            return
        self.end()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -P: a file av.py in the current folder is not PyAV. -B: the process may write nothing.
                [sys.executable, "-P", "-B", "-m", "flamest.runtime.video.decoder_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None if os.environ.get("FLAMEST_TRACEBACK") else subprocess.PIPE,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        self._link, self._said_ready = ours, False

    def ready(self) -> socket.socket:
        """The link to a process that can decode. Raises SettingsError ``decoder_broken`` when it never says so."""
        self.start()
        if self._link is None:
            raise InvariantError("a decoder process was started without a link")
        if not self._said_ready:
            self._await_ready(self._link)
        return self._link

    def reaped(self) -> int | None:
        """End the process and its link; the status that it ended with by itself."""
        status = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(END_WITHIN_S)
        self.end()
        return status

    def close(self) -> None:
        """Let it end by itself, as it does without its link."""
        if self._link is not None:
            self._link.close()
        self.reaped()

    def end(self) -> None:
        """Kill it."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stderr is not None:
                self._process.stderr.close()
            self._process = None

    def _await_ready(self, link: socket.socket) -> None:
        link.settimeout(START_WITHIN_S)
        try:
            answer, _ = receive_answer(link, 0)
        except TimeoutError as error:
            self.end()
            raise broken(f"nothing was heard of it for {START_WITHIN_S:g} s") from error
        except (EOFError, ConnectionError, ValueError) as error:
            raise broken(self._last_words()) from error
        if not isinstance(answer, Ready):
            self.end()
            raise InvariantError(f"the decoder began with {type(answer).__name__}, expected Ready")
        if self._process is not None and self._process.stderr is not None:
            self._process.stderr.close()  # it writes nothing more (decoder_process.py)
        self._said_ready = True

    def _last_words(self) -> str:
        """Why it ended: the last line of its stderr, or else its status."""
        process, status, written = self._process, None, b""
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(END_WITHIN_S)
            process.kill()  # where it closed the link and lives on, reading would wait for it
            written = process.stderr.read() if process.stderr is not None else b""
        self.end()
        lines = [line.strip() for line in written.decode(errors="replace").splitlines() if line.strip()]
        if lines:
            return "".join(letter if letter.isprintable() else "?" for letter in lines[-1][:LONGEST_WORDS])
        if status == -signal.SIGKILL:
            return "it was killed, as the system does when memory is short"
        return f"it ended with status {status}"


def broken(words: str) -> SettingsError:
    """The decoder cannot run on this machine as it is: nothing that a clip could be blamed for."""
    return SettingsError(f"the video decoder does not run: {words}", fix="flamest-agent doctor", code=BROKEN)
