"""The worker's tasks at the end of a run: the comparison of heads, and the choice of the one to use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..base.errors import DataError, StorageError
from ..base.files import remove_unfinished
from ..fedproto.calibration import Calibration, make_calibration
from ..fedproto.calibration_counts import CountedClips
from ..fedproto.head import Params
from ..fedproto.model_file import ModelFile, read_model, write_model
from ..fedproto.records import Evaluation, RunSettings
from .egress.policy import Policy
from .egress.reported_calibration import reported_calibration
from .egress.reported_evaluation import reported_evaluation
from .tasks import DataSource, load_data, open_head
from .training.adoption import Adoption, Candidate, candidates, choose_head, own_head, rows_sha256
from .training.dataset import SiloData
from .training.evaluation import ModelChoice, choose_better, evaluate_here
from .training.local import LOCAL
from .training.model_note import ROWS, TrainingNote, own_head_of
from .training.trained_clips import trained_clips
from .training.trainer import HeadTrainer

IN_USE: dict[Candidate, str] = {  # as policy.adopt says, whatever the figures are
    "own": "this silo's own head is in use (policy.adopt)",
    "federated": "the final model is in use (policy.adopt)",
}


def choose_model(source: DataSource, run: RunSettings, final: Params, own: Path, policy: Policy) -> ModelChoice:
    """Choose between the final model and this silo's own one in the file ``own``."""
    held_out = load_data(source, run, policy).held_out
    trainer = open_head(run.head, source.threads)
    try:
        kept = read_model(own)
    except (DataError, StorageError):  # none was trained in this run, or it is lost
        return choose_better(evaluate_here(trainer, final, held_out), None)
    if (kept.head, kept.labels, kept.fingerprint) != (run.head, run.labels, run.fingerprint):
        return choose_better(evaluate_here(trainer, final, held_out), None)
    return choose_better(evaluate_here(trainer, final, held_out), evaluate_here(trainer, kept.params, held_out))


@dataclass(frozen=True, eq=False)
class AdoptedHead:
    """The head that a silo uses after a run, and the reason."""

    candidate: Candidate
    params: Params
    why: str
    adoption: Adoption | None = None  # None: no clips are held out
    calibration: Calibration | None = None  # by the held-out clips; None: they are too few


def adopt_head(source: DataSource, run: RunSettings, federated: Params, own_file: Path, policy: Policy) -> AdoptedHead:
    """Choose the head to use as ``policy.adopt`` says; the own one is kept in ``own_file``.

    Raises DataError (``diverged``) when no own head can be trained.
    """
    data = load_data(source, run, policy)
    if not len(data.train):
        why = "the final model is in use: there are no clips to train a head of this silo's own on"
        return AdoptedHead("federated", federated, why)
    forced: Candidate | None = policy.adopt if policy.adopt in ("own", "federated") else None
    trainer = open_head(run.head, source.threads)
    own = _own_head(trainer, source, run, data, own_file, policy)
    heads: dict[Candidate, Params] = {"own": own, "federated": federated}
    every = len(data.held_out)
    data = data.untrained(trained_clips(own_file.parent, run.run, run.sha256))
    held_out, groups = data.held_out, data.held_out_rows.groups
    if not groups:
        nothing = "held out" if not every else "held out of groups that the run has not trained on"
        why = f"this silo's own head is in use: no clips are {nothing}, on which another could be found better"
        return AdoptedHead(forced or "own", heads[forced or "own"], IN_USE[forced] if forced else why)
    if forced is None:
        heads = candidates(trainer, run, federated, own, data.train)
    found = choose_head(trainer, heads, held_out, groups)
    chosen = forced or found.model
    calibration = make_calibration(trainer.logits(heads[chosen], held_out.x), held_out.y)
    why = f"{found.counts}; {IN_USE[forced]}" if forced else found.text
    if left_out := every - len(held_out):
        why += f"; {left_out} held-out clips of groups that the run has trained on do not count"
    return AdoptedHead(chosen, heads[chosen], why, found, calibration)


def evaluate_own_head(source: DataSource, run: RunSettings, own_file: Path, policy: Policy) -> Evaluation | None:
    """Evaluate a head trained on this silo's clips alone, as far as the policy reports it; None: nothing is reported.

    Raises DataError (``diverged``).
    """
    data = load_data(source, run, policy)
    trainer = open_head(run.head, source.threads)
    own = _own_head(trainer, source, run, data, own_file, policy)
    return reported_evaluation(trainer, own, data, policy, source.secret)


def _own_head(
    trainer: HeadTrainer, source: DataSource, run: RunSettings, data: SiloData, own_file: Path, policy: Policy
) -> Params:
    """Return the head that is trained on this silo's rows alone: from its file, if it was made of the same rows."""
    note, rows = training_note_of(source, run, policy), rows_sha256(data.train)
    known = own_head_of(own_file, run.head, run.labels, run.fingerprint, note, rows)
    if known is not None:
        return known
    params = own_head(trainer, run, data.train)
    remove_unfinished(own_file)
    metadata = {**note.as_metadata(), ROWS: rows}
    write_model(own_file, ModelFile(run.head, params, run.labels, run.fingerprint, LOCAL, run.rounds, metadata))
    return params


def count_for_calibration(
    source: DataSource, run: RunSettings, params: Params, policy: Policy, temperature: float
) -> CountedClips | None:
    """Return the numbers for a step of a calibration, as far as the policy reports them; None: nothing is reported."""
    trainer, data = open_head(run.head, source.threads), load_data(source, run, policy)
    return reported_calibration(trainer, params, data, policy, temperature, source.secret)


def own_calibration(source: DataSource, run: RunSettings, params: Params, policy: Policy) -> Calibration | None:
    """Return a model's calibration by this silo's held-out clips alone; None: they are too few."""
    held_out = load_data(source, run, policy).held_out
    if not len(held_out):
        return None
    return make_calibration(open_head(run.head, source.threads).logits(params, held_out.x), held_out.y)


def training_note_of(source: DataSource, run: RunSettings, policy: Policy) -> TrainingNote:
    """Return the note on a run's training that goes into this silo's model files."""
    return TrainingNote(run.seed, source.hold_out, run.rounds, run.train, policy.privacy == "record-dp")
