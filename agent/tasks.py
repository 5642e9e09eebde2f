"""The daemon's work in the worker process: one function per kind of work, with records in and out."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..base.errors import DataError
from ..base.files import remove_unfinished
from ..fedproto.codecs import Codec, encode_delta
from ..fedproto.head import HeadSpec, Params
from ..fedproto.model_file import ModelFile, write_model
from ..fedproto.records import EncodedUpdate, Evaluation, GlobalModel, RunSettings
from .egress.accountant import Spend
from .egress.policy import Policy, PolicyRefused
from .egress.reported_evaluation import reported_evaluation
from .extraction.aliases import NO_ALIASES, LabelAliases
from .extraction.clip_notes import clip_notes
from .extraction.extract import clips_to_extract, extract_clips
from .extraction.failures import count_by_code
from .extraction.report import ExtractRequest
from .extraction.store import FeatureStore
from .training.client_state import ClientState, TrainedRound
from .training.dataset import FeatureTable, SiloData, silo_data
from .training.feddyn import Correction
from .training.federated import carries_correction, train_silo
from .training.trained_clips import note_trained
from .training.trainer import HeadTrainer
from .worker import report_progress

PROGRESS_EVERY_S = 2.0


@dataclass(frozen=True)
class DataSource:
    """The store, and the rows of it, that a silo trains on."""

    store: Path
    precision: str | None
    hold_out: float  # share of groups
    threads: int | None
    secret: bytes = field(default=b"", repr=False)  # that the noise on evaluations follows from
    aliases: LabelAliases = NO_ALIASES


@dataclass(frozen=True, eq=False)
class RoundWork:
    """A round that this silo is asked to train."""

    run: RunSettings
    silo: str
    model: GlobalModel
    counted_round: int  # the last round in which this silo's update counts, 0 for none (feddyn, lossy codecs)
    state: Path  # the agent's state folder
    policy: Policy = field(default_factory=Policy)
    spends: tuple[Spend, ...] = ()  # spent of record-dp's budget
    codec: Codec = "fp32"  # of the update
    own: Path | None = None  # file for the trained model, as this silo's own


@dataclass(frozen=True, eq=False)
class RoundOutcome:
    """The result of one round of local training."""

    params: Params | None  # None: refused and not trained, or in ``encoded``
    encoded: EncodedUpdate | None  # with a lossy codec
    examples: int
    held_out: int
    ignored: int  # clips that the run cannot use
    loss: float  # last epoch's, nats
    evaluation: Evaluation | None  # of the incoming model, as far as the policy reports it
    spend: Spend | None = None  # record-dp: cost of the update once it is sent
    refused: PolicyRefused | None = None
    left_out: int = 0  # clips of rare classes, in no update (policy.min_class_samples)


def train_round(source: DataSource, work: RoundWork) -> RoundOutcome:
    """Evaluate the incoming model on the held-out clips, then train it on the others, if the policy permits."""
    run, model, policy = work.run, work.model, work.policy
    whole = load_data(source, run, policy)
    data = whole.without_rare_classes(policy.class_floor)
    trainer = open_head(run.head, source.threads)
    held_out, ignored, left_out = len(data.held_out), data.ignored, len(whole.train) - len(data.train)
    try:
        spend = policy.permit(len(data.train), run.train, work.spends, left_out=left_out)
    except PolicyRefused as refused:
        return RoundOutcome(
            None, None, len(data.train), held_out, ignored, math.nan, None, refused=refused, left_out=left_out
        )
    evaluation = reported_evaluation(trainer, model.params, data, policy, source.secret)
    note_trained(work.state, run.run, run.sha256, data.rows.identities, fingerprint=run.fingerprint, stored=data.stored)
    encoded = None
    if carries_correction(run.strategy) or work.codec != "fp32":
        trained, encoded = _train_with_state(trainer, work, data.train)
    else:
        trained = _train(trainer, work, data.train, {})
    if work.own is not None:
        remove_unfinished(work.own)  # of a worker that was ended at a round's deadline
        write_model(work.own, ModelFile(run.head, trained.params, run.labels, run.fingerprint, run.run, model.round))
    params = trained.params if encoded is None else None
    return RoundOutcome(
        params, encoded, trained.examples, held_out, ignored, trained.loss, evaluation, spend, left_out=left_out
    )


def _train_with_state(
    trainer: HeadTrainer, work: RoundWork, table: FeatureTable
) -> tuple[TrainedRound, EncodedUpdate | None]:
    """Train with FedDyn or a lossy codec, from the state of the last round that counted to the next one, saved here."""
    state = ClientState.of_run(work.state, work.run)
    correction = state.correction(work.model.round, work.counted_round)
    known = state.trained(work.model, work.policy.sha256)
    trained = known or _train(trainer, work, table, correction)
    update = None
    if work.codec != "fp32":
        residual = state.residual(work.counted_round)
        encoded = encode_delta(work.codec, work.run.head, trained.params, work.model.params, residual)
        trained = replace(trained, residual=encoded.residual)
        update = EncodedUpdate(work.codec, encoded.payload, encoded.error)
    if known is None:
        state.save(work.model, trained, work.policy.sha256)
    return trained, update


def _train(trainer: HeadTrainer, work: RoundWork, table: FeatureTable, correction: Correction) -> TrainedRound:
    model = work.model
    trained, after = train_silo(
        trainer, work.run, work.silo, model.round, model.params, table, correction, work.policy.protection
    )
    return TrainedRound(trained.params, len(table), trained.loss, after)


def evaluate_model(source: DataSource, run: RunSettings, params: Params, policy: Policy) -> Evaluation | None:
    """Evaluate a model on the held-out clips, as far as the policy reports it; None: nothing is reported."""
    trainer, data = open_head(run.head, source.threads), load_data(source, run, policy)
    return reported_evaluation(trainer, params, data, policy, source.secret)


@dataclass(frozen=True)
class ExtractionSummary:
    """An extraction's result for the daemon: nothing in it names a clip."""

    figures: dict[str, Any]  # counts and times only, for the log
    backends: dict[str, str]  # by graph: where it ran; empty when nothing had to be extracted
    failed: dict[str, int]  # clips that cannot be used, by code
    used_stored_precision: bool = False  # the settings name no precision: the store's was used
    unlisted: int = 0  # stored clips that are listed no more, and so have no label
    notes: dict[str, int] = field(default_factory=dict)  # on groups, folders and segments: numbers by code


def extract_new(request: ExtractRequest) -> ExtractionSummary:
    """Bring the store up to date with the video folder; reports (clips done, clips in all) now and then."""
    folder = clips_to_extract(request.videos, request.rules)
    done, reported = 0, time.monotonic()

    def count_clip() -> None:
        nonlocal done, reported
        done += 1
        if time.monotonic() - reported >= PROGRESS_EVERY_S:
            reported = time.monotonic()
            report_progress((done, len(folder.clips)))

    report = extract_clips(request, folder, on_clip=count_clip, stop=lambda: False)
    figures = {
        "clips": report.clips,
        "extracted": report.extracted,
        "skipped": report.skipped,
        "failed": report.failed_clips,
        "ms_per_clip": report.ms_per_clip or 0.0,
        "peak_mb": report.peak_mb,
        "precision": report.precision,
        **({"unlisted": report.unlisted} if report.unlisted else {}),
        **({"ended_workers": len(report.crashes)} if report.crashes else {}),
    }
    places = {placement.graph: placement.where for placement in report.placements}
    notes = {note.code: note.count for note in clip_notes(folder, request.rules)}
    return ExtractionSummary(
        figures, places, count_by_code(report.failed), report.used_stored_precision, report.unlisted, notes
    )


def load_data(source: DataSource, run: RunSettings, policy: Policy) -> SiloData:
    """Load the rows. With record-dp each group is held out or not by itself: no clip may move the others."""
    with FeatureStore.open(source.store, create=False, read_only=True) as store:
        stored = store.read(run.fingerprint, source.precision)
    if stored.fingerprint != run.fingerprint:  # for people the beginning of one is enough
        raise DataError(
            f"the store's features are of {stored.fingerprint}, the run's of {run.fingerprint}",
            fix="extract with the bundle of the run",
            code="no_such_features",
        )
    if stored.x.shape[1] != run.head.inputs:
        raise DataError(
            f"the store's features are {stored.x.shape[1]}-d, the run expects {run.head.inputs}-d ones",
            fix="ask the coordinator's operator to compare run.inputs with the bundle: "
            "flamest-coordinator run --check-config --bundle DIR",
            code="feature_width",
        )
    independent = policy.privacy == "record-dp"
    return silo_data(
        stored, run.labels, hold_out=source.hold_out, seed=run.seed, independent=independent, aliases=source.aliases
    )


@functools.lru_cache(maxsize=2)
def open_head(head: HeadSpec, threads: int | None) -> HeadTrainer:
    """Return a head's trainer, whose graphs stay open from round to round."""
    return HeadTrainer(head, threads=threads)
