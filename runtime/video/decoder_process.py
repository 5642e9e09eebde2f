"""The decoder process: the program that decoder.py starts, asks and ends.

Video files are untrusted and ffmpeg is large. They meet in this process, which has limits of memory, processor time
and open files, writes nothing, and can crash without ending the agent.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...base.channel import Channel
from ...base.environment import TRACEBACK
from ...base.errors import DataError, MissingExtra
from ...base.process import peak_resident_kb, trim_memory
from ..clip_records import Segment
from .decoded_clip import DecodedClip
from .decoded_segment import DecodedSegment
from .decoder_messages import (
    DECODER_BROKEN,
    Answer,
    DecodeRefused,
    FramesListed,
    FramesRead,
    ListFrames,
    MakePiece,
    OpenClip,
    Opened,
    PieceMade,
    ReadFrames,
    Ready,
    Request,
    printable_text,
)
from .frame_parts import read_parts
from .open_video import OpenVideo
from .preprocessing import Frames
from .proxy import encode_piece

MEMORY_BYTES = 3 << 30  # address space: Python with ffmpeg takes 0.3 GiB before the first frame
OPEN_FILES = 32
LIMITS_AGAIN = 10  # clips' time limits that a file may take for decoding from its beginning again


def main() -> None:
    # Both go to the whole process group or cgroup; the agent finishes its clip first and then ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = Channel.to_parent()
    import av

    av.logging.set_level(None)
    _lock_down()
    _silence()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        parent.send(Ready())
        _serve(parent)


def _lock_down() -> None:
    _limit(resource.RLIMIT_CORE, 0)  # a core file would hold the silo's frames
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)


def _silence() -> None:
    """Drop what a clip's libraries print. Before this, stderr explains to the parent why the decoder does not run."""
    if not TRACEBACK.value():
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)


def _limit(kind: int, value: int) -> None:
    """Set both limits, lower where the administrator allows less."""
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _allow_cpu(seconds: int) -> None:
    """Let this clip take ``seconds`` more processor time; the kernel then ends the process (SIGXCPU)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + 1 + seconds
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _serve(parent: Channel) -> None:
    import av.error

    decoder = Decoder()
    while True:
        try:
            request, attached = parent.receive_with_descriptor(Request)
        except (EOFError, ConnectionResetError):
            return
        _allow_cpu(request.cpu_s)
        payload = memoryview(b"")
        answer: Answer
        try:
            payload, answer = decoder.answer(request, attached)
        except DataError as error:
            answer = DecodeRefused(error.code, printable_text(error.message), printable_text(error.fix))
        except MemoryError:  # before FFmpegError: PyAV's own MemoryError is one too
            answer = DecodeRefused("video_too_large", f"needs more than {MEMORY_BYTES >> 20} MiB of memory to decode")
        except av.error.FFmpegError as error:
            answer = DecodeRefused("video_damaged", printable_text(f"cannot be decoded: {error}"))
        except (ImportError, MissingExtra) as error:  # no clip's fault
            answer = DecodeRefused(DECODER_BROKEN, printable_text(str(error)))
        parent.send(answer, payload)
        payload = memoryview(b"")
        if not isinstance(answer, Opened):
            decoder.release_frames()
            trim_memory()  # the next clip may come much later: an idle decoder stays small


class Decoder:
    """The file opened last, and the clip of it that is open."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._content: tuple[int, ...] = ()
        self._video: OpenVideo | None = None  # of the file whose segments or frame times were asked for last
        self._clip: DecodedClip | DecodedSegment | None = None

    def answer(self, request: Request, attached: int | None) -> tuple[memoryview, Answer]:
        """Payload and answer. Raises DataError with a code of decoder.py; ffmpeg's errors; MemoryError."""
        if isinstance(request, ReadFrames):
            return self._frames(request)
        self._clip = None  # its frames are freed before the next clip's are decoded
        if attached is None:
            raise ValueError("a request to open a clip has no file")
        if isinstance(request, ListFrames):
            return _listed(self._opened_video(attached, request))
        if isinstance(request, MakePiece):
            video = self._opened_video(attached, request)
            piece = encode_piece(video, Segment(request.start_us, request.end_us))
            return memoryview(piece), PieceMade(peak_resident_kb())
        if request.segment is None:
            return self._candidates(self._whole(attached, request), request)
        video = self._opened_video(attached, request)
        return self._candidates(DecodedSegment(video, Segment(*request.segment), request), request)

    def release_frames(self) -> None:
        if self._clip is not None:
            self._clip.release_frames()

    def _whole(self, fd: int, request: OpenClip) -> DecodedClip:
        self._take(fd)
        return DecodedClip(
            fd, candidates=request.candidates, largest_frame=request.largest_frame, held_bytes=request.held_bytes
        )

    def _opened_video(self, fd: int, request: OpenClip | ListFrames | MakePiece) -> OpenVideo:
        """The video in ``fd``; the one that is open where it is the same file, unchanged."""
        if self._video is not None and self._content == _content(fd):
            os.close(fd)
            return self._video
        self._take(fd)
        self._video = OpenVideo(fd, request.largest_frame, again_s=LIMITS_AGAIN * request.cpu_s)
        return self._video

    def _take(self, fd: int) -> None:
        """Close the file before, and keep this one."""
        if self._video is not None:
            self._video.close()
        if self._fd is not None:
            os.close(self._fd)
        self._video, self._fd, self._content = None, fd, _content(fd)

    def _candidates(self, clip: DecodedClip | DecodedSegment, request: OpenClip) -> tuple[memoryview, Opened]:
        self._clip = clip
        frames = clip.candidate_frames(request.form)
        survey = clip.survey
        times = tuple(survey.t_s[clip.candidates].tolist())
        answer = Opened(times, survey.frames, survey.warnings, peak_resident_kb(), clip.decoded)
        return _joined(frames), answer

    def _frames(self, request: ReadFrames) -> tuple[memoryview, FramesRead]:
        if self._clip is None:
            raise ValueError("frames were requested before a clip was opened")
        frames, prepare_ms = read_parts(self._clip.rgb, request.parts)
        height, width = self._clip.size
        return _joined(frames), FramesRead(height, width, prepare_ms, peak_resident_kb())


def _content(fd: int) -> tuple[int, int, int, int]:
    """Device, inode, size and time of change: another file, or one that was written to, differs."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _listed(video: OpenVideo) -> tuple[memoryview, FramesListed]:
    times = video.frame_times()
    keys = np.zeros(len(times.t_us), np.uint8)
    keys[times.key_frames] = 1
    payload = memoryview(times.t_us.tobytes() + keys.tobytes())
    return payload, FramesListed(len(times.t_us), times.exact, times.end_us, peak_resident_kb())


def _joined(frames: Sequence[Frames]) -> memoryview:
    return memoryview(b"".join(frame.data for frame in frames))


if __name__ == "__main__":
    main()
