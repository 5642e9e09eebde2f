"""What the worker process does for the daemon: one function per kind of work, records in and out."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..base.errors import DataError, StorageError
from ..fedproto.codecs import Codec, encode_delta
from ..fedproto.head import HeadSpec, Params
from ..fedproto.model_file import ModelFile, read_model, write_model
from ..fedproto.records import EncodedUpdate, Evaluation, GlobalModel, RunSettings
from .egress.accountant import Spend
from .egress.policy import Policy, PolicyRefused
from .evaluation import Adoption, adopt, measure
from .extraction.extract import extract_folder
from .extraction.records import ExtractRequest, count_by_code
from .extraction.store import FeatureStore
from .training.client_state import Corrections, TrainedRound
from .training.dataset import FeatureTable, SiloData, silo_data
from .training.federated import Correction, train_silo
from .training.trainer import HeadTrainer


@dataclass(frozen=True)
class DataSource:
    """Which rows of which store a silo trains on."""

    store: Path
    precision: str | None
    hold_out: float  # share of groups
    threads: int | None


@dataclass(frozen=True, eq=False)
class RoundWork:
    """A round that this silo is asked to train."""

    run: RunSettings
    silo: str
    model: GlobalModel
    counted_round: int  # the last round whose update of this silo counts, 0 for none (feddyn)
    state: Path  # the agent's state folder
    policy: Policy = field(default_factory=Policy)
    spends: tuple[Spend, ...] = ()  # what record-dp has spent of its budget
    codec: Codec = "fp32"  # that the update is sent with
    own: Path | None = None  # where what was trained is kept as this silo's own model


@dataclass(frozen=True, eq=False)
class RoundOutcome:
    """What one round of local training came to."""

    params: Params | None  # None: refused, nothing was trained; or they are in ``encoded``
    encoded: EncodedUpdate | None  # with a lossy codec
    examples: int
    held_out: int
    ignored: int  # clips that the run cannot use
    loss: float  # last epoch's, nats
    evaluation: Evaluation | None  # of the incoming model, as far as the policy lets it out; None: nothing
    spend: Spend | None = None  # record-dp: what the update costs once it is sent
    refused: PolicyRefused | None = None


def train_round(source: DataSource, work: RoundWork) -> RoundOutcome:
    """Evaluate the incoming model on the held-out clips, then train it on the others, if the policy permits."""
    run, model, policy = work.run, work.model, work.policy
    data = _load(source, run, policy)
    trainer = _trainer(run.head, source.threads)
    held_out, ignored = len(data.held_out), data.ignored
    try:
        spend = policy.permit(len(data.train), run.train, work.spends)
    except PolicyRefused as refused:
        return RoundOutcome(None, None, len(data.train), held_out, ignored, math.nan, None, refused=refused)
    evaluation = _told(trainer, model.params, data, policy)
    encoded = None
    if run.strategy.name == "feddyn" or work.codec != "fp32":
        trained, encoded = _train_carrying(trainer, work, data.train)
    else:
        trained = _train(trainer, work, data.train, {})
    if work.own is not None:
        write_model(work.own, ModelFile(run.head, trained.params, run.labels, run.fingerprint, run.run, model.round))
    params = trained.params if encoded is None else None
    return RoundOutcome(params, encoded, trained.examples, held_out, ignored, trained.loss, evaluation, spend)


def _train_carrying(
    trainer: HeadTrainer, work: RoundWork, table: FeatureTable
) -> tuple[TrainedRound, EncodedUpdate | None]:
    """FedDyn and lossy codecs: from what counts to what comes next, which is durable before anything is sent."""
    corrections = Corrections.of_run(work.state, work.run)
    correction = corrections.before(work.model.round, work.counted_round)
    known = corrections.sent(work.model, work.policy.sha256)
    trained = known or _train(trainer, work, table, correction)
    update = None
    if work.codec != "fp32":
        carried = corrections.residual(work.counted_round)
        encoded = encode_delta(work.codec, work.run.head, trained.params, work.model.params, carried)
        trained = replace(trained, residual=encoded.residual)
        update = EncodedUpdate(work.codec, encoded.payload, encoded.error)
    if known is None:
        corrections.keep(work.model, trained, work.policy.sha256)
    return trained, update


def _train(trainer: HeadTrainer, work: RoundWork, table: FeatureTable, correction: Correction) -> TrainedRound:
    model = work.model
    trained, after = train_silo(
        trainer, work.run, work.silo, model.round, model.params, table, correction, work.policy.protection
    )
    return TrainedRound(trained.params, len(table), trained.loss, after)


def measure_model(source: DataSource, run: RunSettings, params: Params, policy: Policy) -> Evaluation | None:
    """What may be told of how a model does on the held-out clips; None when none are held out."""
    return _told(_trainer(run.head, source.threads), params, _load(source, run, policy), policy)


def _told(trainer: HeadTrainer, params: Params, data: SiloData, policy: Policy) -> Evaluation | None:
    if not policy.reports:
        return None
    return policy.redact_evaluation(measure(trainer, params, data.held_out, policy.report_classes))


def choose_model(source: DataSource, run: RunSettings, final: Params, own: Path, policy: Policy) -> Adoption:
    """Whether the final model is taken into use, or this silo's own one in the file ``own``."""
    held_out = _load(source, run, policy).held_out
    trainer = _trainer(run.head, source.threads)
    try:
        kept = read_model(own)
    except (DataError, StorageError):  # none was trained in this run, or it is lost
        return adopt(measure(trainer, final, held_out, 0), None)
    if (kept.head, kept.labels, kept.fingerprint) != (run.head, run.labels, run.fingerprint):
        return adopt(measure(trainer, final, held_out, 0), None)
    return adopt(measure(trainer, final, held_out, 0), measure(trainer, kept.params, held_out, 0))


@dataclass(frozen=True)
class Extracted:
    """What the daemon is told of an extraction."""

    figures: dict[str, Any]  # counts and times only, for the log
    backends: dict[str, str]  # by graph: where it ran; empty when nothing had to be extracted
    failed: dict[str, int]  # clips that cannot be used, by code
    followed: bool = False  # the settings name no precision, that of the store was taken


def extract_new(request: ExtractRequest) -> Extracted:
    """Bring the store up to date with the video folder."""
    report = extract_folder(request)
    figures = {
        "clips": report.clips,
        "extracted": report.extracted,
        "skipped": report.skipped,
        "failed": len(report.failed),
        "ms_per_clip": report.ms_per_clip or 0.0,
        "peak_mb": report.peak_mb,
        "precision": report.precision,
    }
    places = {place.graph: place.where for place in report.places}
    return Extracted(figures, places, count_by_code(report.failed), report.followed)


def _load(source: DataSource, run: RunSettings, policy: Policy) -> SiloData:
    """With record-dp each group is held out or not by itself: no clip may move the others."""
    with FeatureStore.open(source.store, create=False, read_only=True) as store:
        stored = store.read(run.fingerprint, source.precision)
    each_alone = policy.privacy == "record-dp"
    return silo_data(stored, run.labels, hold_out=source.hold_out, seed=run.seed, each_alone=each_alone)


@functools.lru_cache(maxsize=2)
def _trainer(head: HeadSpec, threads: int | None) -> HeadTrainer:
    """The graphs of a head stay open from round to round."""
    return HeadTrainer(head, threads=threads)
