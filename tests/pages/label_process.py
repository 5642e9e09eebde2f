"""The real ``flamest-agent label`` on videos made here, for the tests of its page in a browser."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flamest.agent.extraction.labels_table import LabelRow, read_labels

WITHIN_S = 120.0  # of two busy cores
ADDRESS = re.compile(r"(?P<page>http://127\.0\.0\.1:(?P<port>\d+)/[\w-]+/)enter\?token=\S+")
FPS = 25


def write_video(path: Path, *, seconds: float, codec: str = "libx264", hue: int = 0) -> Path:
    """A video of 160 × 120 pixels in which a bar moves; MP4 with H.264, or AVI with MPEG-4."""
    import av
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(round(seconds * FPS)):
            picture = np.full((120, 160, 3), (hue, 90, 140), np.uint8)
            picture[:, (number * 4) % 150 : (number * 4) % 150 + 10] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


def rows(folder: Path) -> list[LabelRow]:
    """The rows of the folder's labels.csv, in its order; none without the file."""
    if not (folder / "labels.csv").exists():
        return []
    return list(read_labels(folder, folder.resolve()).rows)


def wait_until(true: Any, what: str, *, within_s: float = WITHIN_S) -> None:
    """Wait until ``true()``; fail with ``what`` it was."""
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, f"not within {within_s} s: {what}"
        time.sleep(0.05)


@dataclass
class LabelProcess:
    """A running ``flamest-agent label``, and the addresses that it has shown."""

    folder: Path
    arguments: tuple[str, ...] = ()
    port: int = 0
    page: str = ""  # address of the page, of no use without the cookie
    lines: list[str] = field(default_factory=list)
    _addresses: queue.Queue[str] = field(default_factory=queue.Queue)
    _process: subprocess.Popen[str] | None = None
    _thread: threading.Thread = field(default_factory=threading.Thread)

    def start(self) -> None:
        """Start it on ``port``, or on a free one the first time."""
        self._addresses = queue.Queue()
        command = [sys.executable, "-u", "-m", "flamest.agent", "label", "--videos", str(self.folder), "--no-browser"]
        command += ["--port", str(self.port), *self.arguments]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            cwd=self.folder.parent,
        )
        self._thread = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._thread.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.lines.append(line.rstrip())
                if match := ADDRESS.search(line):
                    self.port, self.page = int(match["port"]), match["page"]
                    self._addresses.put(match[0])

    def address(self) -> str:
        """The newest one-time address."""
        try:
            return self._addresses.get(timeout=WITHIN_S)
        except queue.Empty:
            raise AssertionError("\n".join(self.lines)) from None

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """End it as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(WITHIN_S)
        self._thread.join(WITHIN_S)

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(30)
            self._thread.join(WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()


@contextlib.contextmanager
def labelling(folder: Path, *arguments: str) -> Iterator[LabelProcess]:
    """``flamest-agent label`` on ``folder``, ended afterwards."""
    process = LabelProcess(folder, arguments)
    process.start()
    try:
        yield process
    finally:
        process.stop()
