"""After the last round: silos measure the final model, and where they agree each other's last updates.

A silo's update is handed only to silos that agreed to the same with their own, under a number that says nothing of
whose it is: the numbers follow the order of the payloads' digests. docs/evaluation.md has the reasons.
"""

from __future__ import annotations

from ...base.log import Log
from ...fedproto import messages
from ...fedproto.head import params_sha256
from ...fedproto.records import Evaluation
from ...fedproto.tensors import encode_params
from ..storage.evaluations import FINAL
from .active_run import ActiveRun
from .model_broadcast import data_parts
from .upload import Refused, Upload

log = Log("coordinator")


class Finals:
    """The evaluation at the end of the run, if its settings ask for one."""

    def __init__(self, active: ActiveRun, intake: Upload) -> None:
        self._active = active
        self._intake = intake
        self._reported: dict[str, int] = {}  # by silo: its results, once the run has finished
        self._shared: list[tuple[str, str]] = []  # silo and its payload's digest; subject k is the k-th, from 1
        if active.state.open is None:
            self.begin(active.state.last_round)

    def begin(self, last_round: int) -> None:
        """The run has finished: read who shares and who has reported, a few rows. In the store's thread."""
        journal = self._active.store.journal
        self._reported = journal.reported()
        if self._active.run.final_evaluation == "sites":
            self._shared = [(silo, digest) for silo, _, digest in journal.shared(last_round)]

    def asks(self, silo: str) -> bool:
        """Whether this silo has something to measure; for a run that has finished."""
        asked = self._active.run.final_evaluation != "none" and silo not in self._reported
        return asked and silo not in self._active.quarantined

    def subjects(self, silo: str) -> int:
        """How many models it is asked to measure, the final one first."""
        return 1 + (len(self._shared) if silo in {name for name, _ in self._shared} else 0)

    async def subject_messages(self, silo: str, subject: int) -> list[bytes]:
        """A single silo's model. Raises Refused (``not_shared``) unless this silo was offered it."""
        active = self._active
        if active.state.open is not None or not self.asks(silo) or not 1 <= subject < self.subjects(silo):
            raise Refused(f"silo '{silo}' has no model {subject} to measure", code="not_shared")
        round_number = active.state.last_round
        owner, digest = self._shared[subject - 1]

        def made() -> list[bytes]:
            params = active.store.shared_params(round_number, owner, digest)
            payload = encode_params(active.run.head, params)
            header = messages.ModelHeader(round_number, params_sha256(params), len(payload))
            return [messages.encode_model_header(header), *data_parts(payload)]

        return await active.on_disk(made)

    async def take(self, silo: str, report: messages.EvaluationReport) -> messages.EvaluationReceipt:
        """Keep a silo's report, once; durable when this returns. The same silo's next one gets the first one's receipt.

        Raises Refused (``quarantined``, ``stale_round``, ``evaluation``).
        """
        active = self._active
        if silo in active.quarantined:
            raise Refused(f"silo '{silo}' is in quarantine: nothing of it is taken", code="quarantined")
        async with active.turn:
            state = active.state
            if state.open is not None or report.round != state.last_round or active.run.final_evaluation == "none":
                raise Refused(f"no evaluation of round {report.round} is asked for", code="stale_round")
            if (known := self._reported.get(silo)) is not None:
                return messages.EvaluationReceipt(report.round, known)
            results = self._by_name(silo, report)
            await active.on_disk(lambda: active.store.report_final(silo, results, state))
            self._reported[silo] = len(results)
        log.info("evaluation_reported", silo=silo, models=len(results))
        return messages.EvaluationReceipt(report.round, len(results))

    def _by_name(self, silo: str, report: messages.EvaluationReport) -> dict[str, Evaluation]:
        names = [FINAL, *(name for name, _ in self._shared)][: self.subjects(silo)]
        for one in report.results:
            if one.subject >= len(names):
                raise Refused(
                    f"evaluation from silo '{silo}': model {one.subject}, it was asked for {len(names)}",
                    code="evaluation",
                )
            self._intake.check_evaluation(one.evaluation, whose=f"evaluation from silo '{silo}'")
        return {names[one.subject]: one.evaluation for one in report.results}
