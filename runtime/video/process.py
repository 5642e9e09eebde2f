"""The decoder process as its parent sees it: started, known to be ready, ended, and how it ended.

A process that cannot decode at all (PyAV that does not load, no memory to begin with) never says ``Ready``.
That is an error of the installation, with the last line that it wrote to stderr, and no clip's fault.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys

from ...base.errors import InvariantError, SettingsError
from .messages import BROKEN, Ready, receive_answer

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
                [sys.executable, "-P", "-B", "-m", "flamest.runtime.video.decoder", str(theirs.fileno())],
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
            self._process.stderr.close()  # it writes nothing more (decoder.py)
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
