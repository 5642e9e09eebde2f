"""The head that a silo uses after a run: its own, unless another one is better beyond doubt on its held-out clips."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from flamest.agent.egress.policy import Policy
from flamest.agent.end_of_run import ALONE_MODEL, FINAL_MODEL, OWN_MODEL, REFUSED_MODEL, EndOfRun
from flamest.agent.end_of_run_tasks import adopt_head
from flamest.agent.evaluate import EvaluationRequest, evaluate_on_store
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.agent.settings import load_agent_settings
from flamest.agent.tasks import DataSource, load_data, open_head
from flamest.agent.training import adoption
from flamest.agent.training.adoption import Adoption, Answered, answered, choose_by
from flamest.agent.training.federated import RoundKey, run_round
from flamest.agent.training.local import LOCAL
from flamest.agent.training.model_note import training_note
from flamest.agent.training.trained_clips import note_trained
from flamest.agent.worker import WorkExpired
from flamest.base.errors import DataError, SettingsError
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.model_file import ModelFile, read_model, write_model
from flamest.fedproto.records import GlobalModel, Phase, RunSettings, TaskStatus, TrainSettings
from flamest.runtime.clip_records import Clip

LABELS = ("fall", "run", "walk")
HEAD = HeadSpec(3, len(LABELS), ())
TRAIN = TrainSettings(epochs=2, batch_size=16, learning_rate=0.05)
RUN = RunSettings("r", LABELS, HEAD, 4, 1, 9.0, "f", train=TRAIN, seed=2)
AUTO = Policy(min_samples=1, min_samples_override=True, hold_out=0.3, adopt="auto")
RIGHT = {"0.weight": 20 * np.eye(3, dtype=np.float32), "0.bias": np.zeros(3, np.float32)}
WRONG = {"0.weight": -20 * np.eye(3, dtype=np.float32), "0.bias": np.zeros(3, np.float32)}


class InlineWorker:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def call(self, function, *arguments, until):
        if self.error is not None:
            raise self.error
        return function(*arguments)


def source_of(tmp_path, *, noise: float, groups: int = 30) -> DataSource:
    """Four clips in each group, whose class is a direction."""
    random, path = np.random.default_rng(1), tmp_path / "features.sqlite"
    with FeatureStore.open(path) as store:
        rows = []
        for number in range(4 * groups):
            group = number // 4
            x = (np.eye(3)[group % 3] + noise * random.normal(size=3)).astype(np.float32)
            clip = Clip(tmp_path / f"{number}.mp4", f"{number:064x}", LABELS[group % 3], f"scene{group}")
            rows.append((f"{number}.mp4", FeatureRow(clip, x, 1, "f", "fp32")))
        store.add_rows(rows)
    return DataSource(path, None, AUTO.hold_out, 1)


def end_of_run(tmp_path, source, policy=AUTO, *, worker=None, params=RIGHT, run=RUN):
    """Adopt a model; returns what is in use, and its file."""
    end = EndOfRun(tmp_path, SimpleNamespace(policy=policy), worker or InlineWorker(), source)
    sha256 = params_sha256(params)
    client = SimpleNamespace(fetch=lambda *_: GlobalModel(run.rounds, params, sha256))
    used = end.adopt_model(client, run, TaskStatus(Phase.FINISHED, run.rounds, sha256, 0.0, 15.0))
    return used, read_model(tmp_path / FINAL_MODEL)


def correct(*right: int, of: int = 60) -> Answered:
    """Answers of which these are right and certain, the others wrong and certain."""
    rows = np.zeros(of, np.bool_)
    rows[list(right)] = True
    return Answered(rows, rows.astype(np.float64))


def test_the_own_head_stays_unless_another_is_better_beyond_doubt():
    groups = [str(number // 3) for number in range(60)]
    own = correct(*range(30))
    slightly = correct(*range(33))
    clearly = correct(*range(45))
    assert choose_by({"own": own, "federated": slightly}, groups).model == "own"
    assert choose_by({"own": own, "federated": clearly}, groups).model == "federated"
    best = choose_by({"own": own, "federated": clearly, "blend": correct(*range(48)), "tuned": clearly}, groups)
    assert (best.model, best.correct["blend"]) == ("blend", 48)
    assert best.gain.gain == pytest.approx(15 / 60), "the gain is the federated model's, whichever is used"


def test_of_equals_the_federated_model_is_used():
    groups = [str(number) for number in range(60)]
    same = correct(*range(40))
    found = choose_by({"own": correct(*range(20)), "federated": same, "blend": same, "tuned": same}, groups)
    assert found.model == "federated"


def test_a_head_with_fewer_correct_predictions_is_never_used():
    groups = [str(number) for number in range(60)]
    own = Answered(np.arange(60) < 40, np.full(60, 0.5))
    surer = Answered(np.arange(60) < 39, np.full(60, 0.6))
    found = choose_by({"own": own, "federated": surer}, groups)
    assert found.doubts["federated"] < 0.001
    assert found.model == "own"


def test_a_head_that_is_only_surer_has_the_same_score():
    random = np.random.default_rng(5)
    y = random.integers(0, 3, 50)
    logits = random.normal(size=(50, 3)) + np.eye(3)[y]
    assert np.allclose(answered(logits, y).score, answered(7 * logits, y).score, atol=1e-6)


def test_logits_that_are_not_finite_are_wrong_answers():
    logits, y = 5 * np.eye(3), np.arange(3)
    logits[1, 2] = np.nan
    found = answered(logits, y)
    assert (found.correct.tolist(), found.score[1]) == ([True, False, True], 0.0)
    assert answered(np.full((2, 3), np.inf), y[:2]).score.tolist() == [0.0, 0.0]


def test_too_few_groups_are_named():
    found = choose_by({"own": correct(), "federated": correct(*range(60))}, [str(n // 20) for n in range(60)])
    assert found.model == "own"
    assert "on fewer than 5 groups nothing can be" in found.text


def test_a_candidate_like_the_own_head_is_never_used():
    groups = [str(number) for number in range(60)]
    own = correct(*range(30))
    found = choose_by({"own": own, "federated": own, "blend": own, "tuned": correct(*range(31))}, groups)
    assert (found.model, found.doubts["federated"], found.gain.gain) == ("own", 1.0, 0.0)
    assert "none is better than the own one beyond doubt" in found.text


def test_clips_of_one_group_never_change_the_head():
    found = choose_by({"own": correct(), "federated": correct(*range(60))}, ["one"] * 60)
    assert (found.model, found.groups, found.doubts["federated"]) == ("own", 1, 0.5)
    assert (found.gain.gain, found.gain.low, found.gain.high) == (1.0, -1.0, 1.0)


def test_five_groups_are_enough_and_four_are_not():
    for groups, model in ((4, "own"), (5, "federated")):
        heads = {"own": correct(of=3 * groups), "federated": correct(*range(3 * groups), of=3 * groups)}
        assert choose_by(heads, [str(n // 3) for n in range(3 * groups)]).model == model


def test_the_candidates_are_the_tuned_head_and_half_way_to_it(tmp_path):
    data = load_data(source_of(tmp_path, noise=0.3), RUN, AUTO)
    trainer, federated, own = open_head(HEAD, 1), initial_params(HEAD, 7), initial_params(HEAD, 8)
    heads = adoption.candidates(trainer, RUN, federated, own, data.train)
    assert list(heads) == ["own", "federated", "blend", "tuned"]
    assert heads["own"] is own
    assert heads["federated"] is federated
    tuned = federated
    for number in (1, 2, 3):
        tuned = run_round(trainer, tuned, data.train, TRAIN, RoundKey(RUN.seed, number, LOCAL)).params
    for name in federated:
        assert np.array_equal(heads["tuned"][name], tuned[name])
        assert heads["blend"][name].dtype == np.float32
        assert np.allclose(heads["blend"][name], (federated[name] + tuned[name]) / 2, atol=1e-6)


def test_a_better_final_model_is_used_and_its_gain_known(tmp_path):
    slow = msgspec.structs.replace(RUN, train=msgspec.structs.replace(TRAIN, learning_rate=1e-6))
    used, kept = end_of_run(tmp_path, source_of(tmp_path, noise=0.1, groups=60), run=slow)
    assert used.model in ("final", "blend", "tuned"), used.why
    assert "better than the own one beyond doubt" in used.why
    assert used.gain["low"] > 0
    assert used.gain["clips"] == 72
    assert (params_sha256(kept.params) == params_sha256(RIGHT)) == (used.model == "final")
    assert kept.calibration.clips == 72
    assert training_note(kept).split == (RUN.seed, 0.3, False)


def test_a_worse_final_model_is_not_used_and_kept_aside(tmp_path):
    source = source_of(tmp_path, noise=0.1)
    used, kept = end_of_run(tmp_path, source, params=WRONG)
    assert used.model == "own"
    assert used.gain["high"] < 0
    own = read_model(tmp_path / ALONE_MODEL)
    assert params_sha256(kept.params) == params_sha256(own.params)
    assert own.run == LOCAL
    assert params_sha256(read_model(tmp_path / REFUSED_MODEL).params) == params_sha256(WRONG)
    end_of_run(tmp_path, source, Policy(hold_out=0.3))
    assert not (tmp_path / REFUSED_MODEL).exists(), "the next final model is in use"


def test_the_own_head_is_that_of_a_training_alone_and_trained_once(tmp_path, monkeypatch):
    source = source_of(tmp_path, noise=0.1)
    end_of_run(tmp_path, source)
    compared = evaluate_on_store(tmp_path / FINAL_MODEL, EvaluationRequest(source.store, threads=1))
    monkeypatch.setattr(adoption, "train_locally", lambda *_, **__: pytest.fail("it is there already"))
    again = end_of_run(tmp_path, source)[0]
    assert again.gain["clips"] == compared["clips"]
    monkeypatch.undo()
    (tmp_path / ALONE_MODEL).unlink()
    assert evaluate_on_store(tmp_path / FINAL_MODEL, EvaluationRequest(source.store, threads=1)) == compared


def test_an_own_head_of_other_clips_is_trained_again(tmp_path):
    source = source_of(tmp_path, noise=0.1)
    end_of_run(tmp_path, source)
    before = read_model(tmp_path / ALONE_MODEL).metadata["rows"]
    source.store.unlink()
    end_of_run(tmp_path, source_of(tmp_path, noise=0.2))
    assert read_model(tmp_path / ALONE_MODEL).metadata["rows"] != before


def test_without_held_out_clips_the_own_head_is_used(tmp_path):
    source = source_of(tmp_path, noise=0.1)
    one = DataSource(source.store, None, 0.0, 1)
    used, _ = end_of_run(tmp_path, one, msgspec.structs.replace(AUTO, hold_out=0.0))
    assert (used.model, dict(used.gain)) == ("own", {})
    assert "no clips are held out" in used.why


def test_the_own_head_on_request_shows_the_gain_too(tmp_path):
    used, kept = end_of_run(tmp_path, source_of(tmp_path, noise=0.1), msgspec.structs.replace(AUTO, adopt="own"))
    assert used.model == "own"
    assert used.gain["clips"] == 36
    assert params_sha256(kept.params) == params_sha256(read_model(tmp_path / ALONE_MODEL).params)


def test_the_final_model_on_request_shows_the_gain_too(tmp_path):
    policy = msgspec.structs.replace(AUTO, adopt="federated")
    used, kept = end_of_run(tmp_path, source_of(tmp_path, noise=0.1), policy, params=WRONG)
    counts = "of 36 held-out clips in 9 groups are right: the own head 36, the final model 0"
    assert (used.model, used.why) == ("final", f"{counts}; the final model is in use (policy.adopt)")
    assert used.gain["high"] < 0
    assert params_sha256(kept.params) == params_sha256(WRONG)
    assert not (tmp_path / REFUSED_MODEL).exists()


def trained_on(tmp_path, groups: range, run=RUN) -> None:
    """Note the first clip of each of these groups."""
    note_trained(tmp_path, run.run, run.sha256, [f"{4 * group:064x}" for group in groups])


def test_groups_that_the_run_has_trained_on_do_not_count(tmp_path):
    source = source_of(tmp_path, noise=0.1)
    before = end_of_run(tmp_path, source)[0]
    trained_on(tmp_path, range(15))
    used = end_of_run(tmp_path, source)[0]
    left_out = before.gain["clips"] - used.gain["clips"]
    assert 0 < left_out < before.gain["clips"]
    assert f"{left_out} held-out clips of groups that the run has trained on do not count" in used.why
    evaluated = evaluate_on_store(tmp_path / FINAL_MODEL, EvaluationRequest(source.store, threads=1))
    assert (evaluated["clips"], evaluated["left_out"]) == (used.gain["clips"], left_out)
    trained_on(tmp_path, range(15), msgspec.structs.replace(RUN, seed=9))
    assert end_of_run(tmp_path, source)[0].gain == before.gain, "those of another run count"


@pytest.mark.parametrize("size", [1e20, 1e30, 3e38, -3e38])
def test_a_final_model_whose_scores_overflow_is_not_used(tmp_path, size):
    huge = {name: np.full_like(tensor, size) for name, tensor in RIGHT.items()}
    huge["0.weight"][0] *= -1
    used, kept = end_of_run(tmp_path, source_of(tmp_path, noise=0.1), params=huge)
    assert used.model == "own", used.why
    assert np.isfinite([used.gain[name] for name in ("gain", "low", "high")]).all()
    assert params_sha256(kept.params) == params_sha256(read_model(tmp_path / ALONE_MODEL).params)


def test_where_every_group_was_trained_on_the_own_head_is_used(tmp_path):
    source = source_of(tmp_path, noise=0.1)
    trained_on(tmp_path, range(30))
    used, _ = end_of_run(tmp_path, source)
    assert (used.model, dict(used.gain)) == ("own", {})
    assert "no clips are held out of groups that the run has not trained on" in used.why
    with pytest.raises(DataError, match="has trained on the groups of all 36 clips") as raised:
        evaluate_on_store(tmp_path / FINAL_MODEL, EvaluationRequest(source.store, threads=1))
    assert raised.value.code == "no_clips"
    every = evaluate_on_store(tmp_path / FINAL_MODEL, EvaluationRequest(source.store, threads=1, all_clips=True))
    assert (every["clips"], every["left_out"]) == (120, 0)


@pytest.mark.parametrize("error", [WorkExpired("late"), DataError("diverged", fix="", code="diverged")])
def test_a_comparison_that_fails_leaves_the_final_model_in_use(tmp_path, error):
    used, kept = end_of_run(tmp_path, source_of(tmp_path, noise=0.1), worker=InlineWorker(error))
    assert used.model == "final"
    assert error.code in used.why
    assert params_sha256(kept.params) == params_sha256(RIGHT)


def test_without_the_key_nothing_is_trained_and_the_final_model_used(tmp_path):
    used, kept = end_of_run(tmp_path, source_of(tmp_path, noise=0.1), Policy(hold_out=0.3), params=WRONG)
    assert (used.model, used.why, dict(used.gain)) == ("final", "", {})
    assert not (tmp_path / ALONE_MODEL).exists()
    assert params_sha256(kept.params) == params_sha256(WRONG)


def test_a_tuned_head_that_diverges_is_no_candidate(tmp_path, monkeypatch):
    def diverge(*_, **__):
        raise DataError("diverged", fix="", code="diverged")

    monkeypatch.setattr(adoption, "run_round", diverge)
    found = adopt_head(source_of(tmp_path, noise=0.1), RUN, initial_params(HEAD, 1), tmp_path / ALONE_MODEL, AUTO)
    assert isinstance(found.adoption, Adoption)
    assert set(found.adoption.correct) == {"own", "federated"}


class Died(BaseException):
    """The end of the process, in a test."""


@pytest.mark.parametrize("survived", [0, 1])
def test_a_restart_in_the_middle_ends_with_the_same_files(tmp_path, monkeypatch, survived):
    """The daemon ends before one of the two files is written: until then the earlier model is in use."""
    source, earlier = source_of(tmp_path, noise=0.1), initial_params(HEAD, 3)
    end_of_run(tmp_path, source, Policy(hold_out=0.3), params=earlier)
    writes = iter([write_model] * survived + [None])

    def write_or_die(path, model):
        if (write := next(writes)) is None:
            raise Died
        write(path, model)

    monkeypatch.setattr("flamest.agent.end_of_run.write_model", write_or_die)
    with pytest.raises(Died):
        end_of_run(tmp_path, source, params=WRONG)
    monkeypatch.undo()
    assert params_sha256(read_model(tmp_path / FINAL_MODEL).params) == params_sha256(earlier)
    assert (tmp_path / REFUSED_MODEL).exists() == (survived == 1)
    monkeypatch.setattr(adoption, "train_locally", lambda *_, **__: pytest.fail("the own head is there already"))
    used, kept = end_of_run(tmp_path, source, params=WRONG)
    assert used.model == "own"
    assert params_sha256(kept.params) == params_sha256(read_model(tmp_path / ALONE_MODEL).params)
    assert params_sha256(read_model(tmp_path / REFUSED_MODEL).params) == params_sha256(WRONG)
    assert not list(tmp_path.glob("*.tmp*")), "nothing half written is left"


def test_an_own_head_that_was_not_written_whole_is_trained_again(tmp_path, monkeypatch):
    source = source_of(tmp_path, noise=0.1)
    monkeypatch.setattr("flamest.agent.end_of_run_tasks.write_model", lambda *_: (_ for _ in ()).throw(Died))
    with pytest.raises(Died):
        end_of_run(tmp_path, source, params=WRONG)
    monkeypatch.undo()
    assert not (tmp_path / FINAL_MODEL).exists()
    (tmp_path / ALONE_MODEL).write_bytes(b"half")
    assert end_of_run(tmp_path, source, params=WRONG)[0].model == "own"
    assert read_model(tmp_path / ALONE_MODEL).run == LOCAL


@pytest.mark.parametrize(("mine", "model"), [(RIGHT, "own"), (WRONG, "final")])
def test_refuse_worse_compares_with_the_last_rounds_own_model(tmp_path, mine, model):
    source = source_of(tmp_path, noise=0.1)
    write_model(tmp_path / OWN_MODEL, ModelFile(HEAD, mine, LABELS, "f", RUN.run, 4))
    final = WRONG if model == "own" else RIGHT
    used, kept = end_of_run(tmp_path, source, Policy(hold_out=0.3, refuse_worse=True), params=final)
    assert used.model == model
    assert params_sha256(kept.params) == params_sha256(RIGHT)
    assert (tmp_path / REFUSED_MODEL).exists() == (model == "own")
    assert not (tmp_path / ALONE_MODEL).exists(), "no head is trained alone for it"


def test_both_keys_together_are_refused_where_the_settings_are_read(tmp_path):
    (tmp_path / "agent.toml").write_text(
        'store = "s"\nstate = "t"\n[coordinator]\naddress = "h:1"\nca = "c"\ncertificate = "d"\nkey = "e"\n'
        '[policy]\nadopt = "auto"\nrefuse_worse = true\n'
    )
    with pytest.raises(SettingsError, match="refuse_worse: adopt says which model is used"):
        load_agent_settings(tmp_path / "agent.toml")
