"""The evaluation after the last round: silos evaluate the final model, and those that agree each other's last updates.

A silo's update is given only to silos that agreed to the same with their own, under a number that reveals nothing about
its origin: the numbers follow the order of the payloads' digests. docs/guides/evaluation.md has the reasons.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator

import numpy as np

from ...base.errors import DataError
from ...base.log import Log
from ...fedproto import messages
from ...fedproto.calls import CHUNK_BYTES
from ...fedproto.head import params_sha256
from ...fedproto.records import OWN_HEAD, Evaluation
from ...fedproto.tensors import payload_bytes
from ..storage.evaluations import FINAL, OWN
from .active_run import ActiveRun

log = Log("coordinator")

FLOAT_BYTES = 4


class FinalEvaluation:
    """The evaluation at the end of the run, if its settings ask for one."""

    def __init__(self, active: ActiveRun) -> None:
        self._active = active
        self._reported: dict[str, int] = {}  # by silo: its results, once the run has finished
        self._shared: list[tuple[str, str]] = []  # silo and its payload's digest; subject k is the k-th, from 1
        self._hashes: dict[str, str] = {}  # of the models of subjects, by their payload's digest
        if active.state.open is None:
            self.begin(active.state.last_round)

    def begin(self, last_round: int) -> None:
        """Read who shares and who has reported, a few rows: the run has finished. In the store's thread."""
        journal = self._active.store.journal
        self._reported = journal.reported()
        if self._active.run.final_evaluation == "sites":
            shared = [(silo, digest) for silo, _, digest in journal.shared(last_round)]
            self._shared = shared[: messages.MAX_SUBJECTS - 1]  # one more is the final model

    def asks(self, silo: str) -> bool:
        """Return whether this silo has something to evaluate; for a run that has finished."""
        asked = self._active.run.final_evaluation != "none" and silo not in self._reported
        return asked and silo not in self._active.quarantined

    def subjects(self, silo: str) -> int:
        """Return how many models it is asked to evaluate, the final one first."""
        return 1 + (len(self._shared) if silo in {name for name, _ in self._shared} else 0)

    async def subject_messages(self, silo: str, subject: int) -> AsyncIterator[bytes]:
        """Yield a single silo's model as messages, read from disk piece by piece.

        Raises DataError (``not_shared``) unless this silo may have it, and ``corrupt_update``.
        """
        active = self._active
        if active.state.open is not None or not self.asks(silo) or not 1 <= subject < self.subjects(silo):
            raise DataError(f"silo '{silo}' has no model {subject} to evaluate", code="not_shared")
        round_number = active.state.last_round
        owner, digest = self._shared[subject - 1]
        contribution = await active.on_disk(lambda: active.store.shared_update(round_number, owner, digest))
        if digest not in self._hashes:
            self._hashes[digest] = await active.on_disk(lambda: params_sha256(contribution.params))
        size = payload_bytes(active.run.head)
        yield messages.encode_model_header(messages.ModelHeader(round_number, self._hashes[digest], size))
        for start in range(0, size, CHUNK_BYTES):
            values = np.empty(min(CHUNK_BYTES, size - start) // FLOAT_BYTES, np.float32)
            await active.on_disk(functools.partial(contribution.read, start // FLOAT_BYTES, values))
            yield messages.encode_model_data(values.astype("<f4", copy=False).data.cast("B"))

    async def report(self, silo: str, report: messages.EvaluationReport) -> messages.EvaluationReceipt:
        """Keep a silo's report, once; durable on return. A second report gets the receipt of the first.

        Raises DataError (``other_run``, ``quarantined``, ``stale_round``, ``evaluation``).
        """
        try:
            self._active.check_run(report.settings_sha256)
            return await self._keep(silo, report)
        except DataError as problem:
            await self._active.record_refusal(silo, problem)
            raise

    async def _keep(self, silo: str, report: messages.EvaluationReport) -> messages.EvaluationReceipt:
        active = self._active
        active.check_not_quarantined(silo)
        async with active.write_lock:
            active.check_enrolled(silo)
            state = active.state
            if state.open is not None or report.round != state.last_round or active.run.final_evaluation == "none":
                raise DataError(f"no evaluation of round {report.round} is asked for", code="stale_round")
            if (known := self._reported.get(silo)) is not None:
                return messages.EvaluationReceipt(report.round, known)
            results = self._by_name(silo, report)
            await active.on_disk(lambda: active.store.report_final(silo, results, state))
            self._reported[silo] = len(results)
        log.info("evaluation_reported", silo=silo, models=len(results))
        return messages.EvaluationReceipt(report.round, len(results))

    def _by_name(self, silo: str, report: messages.EvaluationReport) -> dict[str, Evaluation]:
        names = dict(enumerate([FINAL, *(name for name, _ in self._shared)][: self.subjects(silo)]))
        asked = len(names)
        if self._active.run.gains:
            names[OWN_HEAD] = OWN
        for one in report.results:
            if one.subject not in names:
                raise DataError(
                    f"evaluation from silo '{silo}': model {one.subject}, it was asked for {asked}",
                    code="evaluation",
                )
            self._active.check_evaluation(one.evaluation, whose=f"evaluation from silo '{silo}'")
        return {names[one.subject]: one.evaluation for one in report.results}
