"""Start of the decoder process, and the reasons why it does not run on a machine: no clip is to blame."""

from __future__ import annotations

import signal

from ...base.child_process import ChildEnded, ChildProcess, ChildTimeout
from ...base.errors import SettingsError
from .decoder_messages import DECODER_BROKEN, Ready, printable_text

PROGRAM = "flamest.runtime.video.decoder_process"
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
START_WITHIN_S = 120.0  # importing PyAV takes 0.3 s; from a slow disk under load much longer


def decoder_problem() -> str:
    """Start a decoder process and return the reason why it does not run on this machine; empty when it runs."""
    try:
        with start_decoder() as process:
            await_ready(process)
    except SettingsError as error:
        return error.message
    return ""


def start_decoder() -> ChildProcess:
    try:
        return ChildProcess(PROGRAM, environment=ONE_THREAD)
    except ChildEnded as ended:
        raise broken_error(ended.reason) from ended


def await_ready(process: ChildProcess) -> None:
    try:
        process.receive(Ready, timeout_s=START_WITHIN_S)
    except ChildEnded as ended:
        raise broken_error(_start_failure(ended)) from ended


def broken_error(reason: str) -> SettingsError:
    """The error of a decoder that cannot run on this machine; no clip is to blame."""
    return SettingsError(f"the video decoder does not run: {reason}", fix="flamest-agent doctor", code=DECODER_BROKEN)


def _start_failure(ended: ChildEnded) -> str:
    if isinstance(ended, ChildTimeout):
        return f"it was not ready within {START_WITHIN_S:g} s"
    lines = [line.strip() for line in ended.output.splitlines() if line.strip()]
    if lines:
        return printable_text(lines[-1])
    if ended.status == -signal.SIGKILL:
        return "it was killed, as the system does when memory is short"
    return f"it ended with {ended.reason}"
