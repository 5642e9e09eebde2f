"""The parent's side of the process that measures one backend (child.py)."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from ...base.channel import Failed, Message
from ...base.child_process import ChildEnded, ChildProcess
from ...base.errors import DataError, FlamestError
from .child import Answer, BenchJob, Question

END_WITHIN_S = 10.0


class BackendFailed(FlamestError):
    """The backend reported why it does not run, or its process ended; the others continue."""

    exit_code = DataError.exit_code
    code = "refused"


class BenchProcess:
    """The process of one backend, which answers one question after the other; a context manager.

    Raises Refused with the child's own code, message and fix, from the constructor too.
    """

    def __init__(self, job: BenchJob) -> None:
        self.job = job
        self._child = ChildProcess("flamest.export.bench.child")
        try:
            self._ask(job)
        except BaseException:
            self._child.kill()
            raise

    @property
    def pid(self) -> int:
        return self._child.pid

    def ask(self, method: str, *arguments: Any) -> Any:
        """The result of ``BenchWorker.method(*arguments)``."""
        return self._ask(Question(method, arguments))

    def close(self) -> None:
        self._child.close(within_s=END_WITHIN_S)

    def __enter__(self) -> BenchProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, message: Message) -> Any:
        self._child.send(message)
        try:
            answer, _ = self._child.receive(Answer | Failed)
        except ChildEnded as ended:
            raise BackendFailed(
                f"its process ended: {ended}",
                fix="flamest-export doctor shows what this backend lacks",
                code="BACKEND_FAILED",
            ) from ended
        if isinstance(answer, Failed):
            raise BackendFailed(answer.message, fix=answer.fix, code=answer.code)
        return answer.result
