"""The calibration of a run's final model: after the last round, from the silos' counts, in two steps.

First the silos report sums of confidence, and a temperature is made of them; then counts of scores at this temperature,
and thresholds are. A step ends when every silo that took part in the run has answered, or at its deadline, which runs
from the first silo that is asked. docs/decisions/046-calibration-by-counts.md has the reasons.
"""

from __future__ import annotations

import time

from ...base.errors import DataError
from ...base.log import Log
from ...fedproto import messages
from ...fedproto.calibration import Calibration
from ...fedproto.calibration_counts import CountedClips, calibration_of, temperature_of
from ..storage.calibrations import CONFIDENCE, SCORES, CalibrationState, weigh
from .active_run import ActiveRun
from .model_broadcast import ModelMessages

log = Log("coordinator")


class FinalCalibration:
    """The calibration at the end of the run, if its settings ask for one."""

    def __init__(self, active: ActiveRun, model: ModelMessages) -> None:
        self._active, self._model = active, model
        self._state = CalibrationState()
        self._numbers: dict[str, CountedClips | None] = {}  # of this step, by silo; None: it declined
        self._deadline: float | None = None  # of this step; None: no silo has been asked
        if active.state.open is None:
            self.begin(active.state.model_sha256)

    def begin(self, model_sha256: str) -> None:
        """Read how far it has come, a few rows: the run has finished. In the store's thread."""
        if self._active.run.calibrate:
            rows = self._active.store.calibrations
            self._state = rows.state(model_sha256)
            self._numbers = dict(rows.numbers(model_sha256, self._step))
            self._model.calibration = self._state.calibration

    @property
    def pending(self) -> bool:
        """True while a finished run's final model is to be calibrated."""
        return self._active.run.calibrate and self._active.state.open is None and not self._state.ended

    @property
    def temperature(self) -> float:
        """Temperature of the step, as it is announced: 0 for sums of confidence."""
        return self._state.temperature or 0.0

    @property
    def _step(self) -> int:
        return CONFIDENCE if self._state.temperature is None else SCORES

    def asks(self, silo: str) -> bool:
        """Return whether this silo has something to count."""
        return self.pending and silo not in self._numbers and silo not in self._active.quarantined

    def note_asked(self) -> None:
        """Note that a silo is asked: the step's deadline runs from the first one."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._active.run.deadline_s

    async def report(self, silo: str, report: messages.CalibrationReport) -> int:
        """Keep a silo's numbers for a step, once, and return the round; durable on return.

        Raises DataError (``other_run``, ``quarantined``, ``stale_round``, ``evaluation``).
        """
        try:
            self._active.check_run(report.settings_sha256)
            return await self._keep(silo, report)
        except DataError as problem:
            await self._active.record_refusal(silo, problem)
            raise

    async def _keep(self, silo: str, report: messages.CalibrationReport) -> int:
        active = self._active
        active.check_not_quarantined(silo)
        async with active.write_lock:
            active.check_enrolled(silo)
            state = active.state
            if not self.pending or (report.round, report.temperature) != (state.last_round, self.temperature):
                raise DataError(
                    f"no calibration at temperature {report.temperature:g} after round {report.round} is asked for",
                    code="stale_round",
                )
            if silo in self._numbers:
                return report.round
            found = self._checked(silo, report)
            rows, step = active.store.calibrations, self._step
            await active.on_disk(lambda: rows.report(state.model_sha256, step, silo, found))
            self._numbers[silo] = found
        active.notify()
        log.info("calibration_reported", silo=silo, step=self._step, clips=report.count)
        return report.round

    def _checked(self, silo: str, report: messages.CalibrationReport) -> CountedClips | None:
        """Return a report's numbers, None where the silo declines. Raises DataError (``evaluation``)."""
        if report.figures is None:
            return None
        most, classes = self._active.server_policy.checks.max_examples, self._active.run.head.outputs
        labels = [one.label for one in getattr(report.figures, "by_class", ())]
        if report.count > most or any(label >= classes for label in labels):
            raise DataError(
                f"calibration from silo '{silo}': {report.count} clips and class {max(labels, default=0)}, this run "
                f"has at most {most} and {classes} classes",
                code="evaluation",
            )
        return CountedClips(report.count, report.noise, report.figures)

    async def tick(self) -> None:
        """End the step if it is time. Raises StorageError when that cannot be made durable: try again."""
        active = self._active
        if not self.pending or active.stopping or not self._is_over():
            return
        async with active.write_lock:
            await (self._end_confidence() if self._step == CONFIDENCE else self._end_scores())
            self._deadline = None
        active.wake()

    def _is_over(self) -> bool:
        active = self._active
        expected = (set(active.state.counted) & active.enrolled()) - active.quarantined
        late = self._deadline is not None and time.monotonic() >= self._deadline
        return late or (bool(self._numbers) and expected <= self._numbers.keys())

    async def _end_confidence(self) -> None:
        active, sha256 = self._active, self._active.state.model_sha256
        found = temperature_of(weigh(self._numbers))
        if found is None:
            await self._end(None)
            return
        await active.on_disk(lambda: active.store.calibrations.begin_scores(sha256, found))
        self._state, self._numbers = CalibrationState(found), {}
        log.info("temperature_found", temperature=round(found, 4))

    async def _end_scores(self) -> None:
        classes = self._active.run.head.outputs
        await self._end(calibration_of(self.temperature, weigh(self._numbers), classes))

    async def _end(self, made: Calibration | None) -> None:
        active = self._active
        await active.on_disk(lambda: active.store.end_calibration(active.state, active.params, made))
        self._state = CalibrationState(self._state.temperature, made, ended=True)
        self._model.calibration = made
        if made is None:
            fix = "none needed: silos calibrate with their own clips where they hold out enough"
            log.warning("not_calibrated", reason="too few held-out clips were reported", fix=fix)
        else:
            log.info("calibrated", temperature=round(made.temperature, 4), clips=made.clips, silos=made.silos)
