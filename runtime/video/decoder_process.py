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

from ...base.channel import Channel
from ...base.environment import TRACEBACK
from ...base.errors import DataError, MissingExtra
from ...base.process import peak_resident_kb, trim_memory
from .decoded_clip import DecodedClip
from .decoder_messages import (
    DECODER_BROKEN,
    Answer,
    DecodeRefused,
    FramePart,
    FramesRead,
    OpenClip,
    Opened,
    ReadFrames,
    Ready,
    Request,
)
from .preprocessing import Frames

MEMORY_BYTES = 3 << 30  # address space: Python with ffmpeg takes 0.3 GiB before the first frame
OPEN_FILES = 32


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

    clip: DecodedClip | None = None
    fd: int | None = None
    while True:
        try:
            request, attached = parent.receive_with_descriptor(Request)
        except (EOFError, ConnectionResetError):
            return
        _allow_cpu(request.cpu_s)
        payload = memoryview(b"")
        answer: Answer
        try:
            if isinstance(request, OpenClip):
                clip = None  # its frames are freed before the next clip's are decoded
                if fd is not None:
                    os.close(fd)
                fd = attached
                clip = _decode(request, fd)
                payload, answer = _candidates(clip, request)
            else:
                payload, answer = _frames(clip, request)
        except DataError as error:
            answer = DecodeRefused(error.code, error.message)
        except MemoryError:  # before FFmpegError: PyAV's own MemoryError is one too
            answer = DecodeRefused("video_too_large", f"needs more than {MEMORY_BYTES >> 20} MiB of memory to decode")
        except av.error.FFmpegError as error:
            answer = DecodeRefused("video_damaged", f"cannot be decoded: {error}")
        except (ImportError, MissingExtra) as error:  # no clip's fault
            answer = DecodeRefused(DECODER_BROKEN, str(error))
        parent.send(answer, payload)
        payload = memoryview(b"")
        if not isinstance(answer, Opened):
            if clip is not None:
                clip.release_frames()
            trim_memory()  # the next clip may come much later: an idle decoder stays small


def _decode(request: OpenClip, fd: int | None) -> DecodedClip:
    if fd is None:
        raise ValueError("a request to open a clip has no file")
    return DecodedClip(
        fd, candidates=request.candidates, largest_frame=request.largest_frame, held_bytes=request.held_bytes
    )


def _candidates(clip: DecodedClip, request: OpenClip) -> tuple[memoryview, Opened]:
    everything = FramePart(tuple(range(len(clip.candidates))), request.form)
    frames, _ = clip.read([everything])
    survey = clip.survey
    times = tuple(survey.t_s[clip.candidates].tolist())
    return _joined(frames), Opened(times, survey.frames, survey.warnings, peak_resident_kb())


def _frames(clip: DecodedClip | None, request: ReadFrames) -> tuple[memoryview, FramesRead]:
    if clip is None:
        raise ValueError("frames were requested before a clip was opened")
    frames, prepare_ms = clip.read(request.parts)
    height, width = clip.size
    return _joined(frames), FramesRead(height, width, prepare_ms, peak_resident_kb())


def _joined(frames: Sequence[Frames]) -> memoryview:
    return memoryview(b"".join(frame.data for frame in frames))


if __name__ == "__main__":
    main()
