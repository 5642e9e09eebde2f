"""The best model, the evaluation at the end of a run, and its communication cost."""

from dataclasses import replace

import pytest
from flamest.agent.training.evaluation import choose_better, reportable_classes
from flamest.base.errors import DataError
from flamest.coordinator.admin.communication_cost import communication_cost_of, communication_costs
from flamest.coordinator.admin.history import RoundRow, UpdateRow
from flamest.coordinator.admin.models import evaluation_lines, evaluation_of, take_model
from flamest.coordinator.admin.status import history_of, status_lines, status_of
from flamest.coordinator.cli import main
from flamest.coordinator.storage.evaluations import (
    ModelEvaluation,
    best_model,
    decode_classes,
    encode_classes,
    most_clips,
    pool_classes,
    pool_evaluations,
)
from flamest.fedproto.head import initial_params, params_sha256
from flamest.fedproto.records import OWN_HEAD, ClassCount, Evaluation, Phase, SubjectEvaluation, Update
from typer.testing import CliRunner


def measured(*figures: tuple[int, int, int]) -> list[ModelEvaluation]:
    """(round, correct, count)"""
    return [ModelEvaluation(number, (("a", Evaluation(1.0, correct, count)),)) for number, correct, count in figures]


def test_the_best_model_has_the_highest_accuracy_later_wins_ties():
    assert best_model(measured((1, 5, 10), (2, 8, 10), (3, 8, 10), (4, 7, 10)))[0] == 3
    assert best_model([]) is None
    assert best_model([ModelEvaluation(1, ())]) is None


def test_few_clips_or_the_initial_model_cannot_be_best():
    assert best_model(measured((0, 40, 40), (1, 30, 40), (2, 3, 3), (3, 28, 40)))[0] == 1


def test_metrics_of_silos_are_weighted_by_their_clips():
    evaluated = ModelEvaluation(2, (("a", Evaluation(1.0, 9, 10)), ("b", Evaluation(4.0, 10, 50))))
    assert evaluated.all == Evaluation((1.0 * 10 + 4.0 * 50) / 60, 19, 60)


def test_class_counts_are_summed_and_survive_their_column():
    first = Evaluation(1.0, 5, 9, (ClassCount(0, 2, 4), ClassCount(2, 3, 5)))
    second = Evaluation(1.0, 1, 4, (ClassCount(2, 1, 4),))
    assert pool_classes([first, second]) == (ClassCount(0, 2, 4), ClassCount(2, 4, 9))
    assert decode_classes(encode_classes(first.by_class)) == first.by_class
    assert encode_classes(()) is None
    assert decode_classes(None) == ()


@pytest.mark.parametrize(
    ("counts", "floor", "evaluated"),
    [
        ({0: 10, 1: 12, 2: 30}, 10, [0, 1, 2]),
        ({0: 10, 1: 12, 2: 3}, 10, [1]),  # 3 clips would be what is left: class 0 is kept back with them
        ({0: 10, 1: 12, 2: 6, 3: 5}, 10, [0, 1]),  # 11 are left
        ({0: 9, 1: 3}, 10, []),
        ({0: 30, 1: 1}, 10, []),
        ({}, 10, []),
    ],
)
def test_a_small_class_is_not_reported_nor_computable_by_subtraction(counts, floor, evaluated):
    assert reportable_classes(counts, floor) == evaluated
    left = sum(counts.values()) - sum(counts[label] for label in reportable_classes(counts, floor))
    assert left == 0 or left >= floor or not evaluated


def test_a_silo_keeps_its_own_model_only_if_more_accurate():
    good, bad = Evaluation(1.0, 9, 10), Evaluation(0.5, 8, 10)
    assert choose_better(bad, good).own
    assert not choose_better(good, bad).own
    assert not choose_better(good, good).own
    assert not choose_better(None, None).own
    assert "8 of 10 held-out clips right, this silo's own 9" in choose_better(bad, good).text


def row(number: int, *updates: tuple[str, str, int]) -> RoundRow:
    evaluated = tuple(UpdateRow(silo, 5, 1.0, codec, 0.1, size, 10, None) for silo, codec, size in updates)
    return RoundRow(number, "closed", 2, "", 1.0, "", 0, len(evaluated), 0, 0, 0, None, None, None, None, evaluated)


def test_communication_cost_is_the_mean_over_a_codecs_silos():
    rounds = [row(number, ("a", "int8", 100), ("b", "fp32", 400), ("c", "int8", 200)) for number in (1, 2, 3)]
    found = communication_costs(rounds, measured((0, 1, 100), (1, 50, 100), (2, 95, 100), (3, 100, 100)))
    assert [(one.codec, one.round, one.silos, one.bytes_per_silo) for one in found] == [
        ("fp32", 2, 1, 2 * 410.0),
        ("int8", 2, 2, 2 * 160.0),
    ]
    assert found[0].final_accuracy == 1.0
    assert communication_costs(rounds, measured((0, 1, 100))) == []


# --- over the wire ---


def answer(federation, silo: str, *, correct: int, shared: bool = True, answered: int = 0) -> None:
    """A silo's round; its held-out clips have ``correct`` of 10."""
    with federation.client(silo) as client:
        run = client.join()
        status = client.wait(run, answered, 5)
        model = client.fetch(run, status)
        params = initial_params(run.head, seed=100 * status.round + ord(silo))
        evaluated = Evaluation(0.5, correct, 10, (ClassCount(1, 1, 3),))
        update = Update(status.round, model.sha256, f"{status.round:031x}{silo}", 5, params, evaluated, shared=shared)
        client.submit(run, update)


@pytest.fixture
def finished(make_federation):
    """Two rounds of three silos; c does not share."""
    federation = make_federation("a", "b", "c", rounds=2, min_silos=3, keep_models=1, final_evaluation='"sites"')
    federation.start()
    for number in (1, 2):
        for silo in "abc":
            answer(federation, silo, correct=number + 2, shared=silo != "c", answered=number - 1)
    with federation.client("a") as client:
        assert client.wait(client.join(), 2, 10).phase is Phase.EVALUATE  # the last round has closed
    return federation


def report(federation, silo: str, results, round_number: int = 2) -> None:
    with federation.client(silo) as client:
        client.report_evaluation(client.join(), round_number, results)


def test_sharing_silos_evaluate_each_others_models_others_the_final_one(finished):
    subjects, seen = {}, {}
    for silo in "abc":
        with finished.client(silo) as client:
            run = client.join()
            status = client.wait(run, 2, 5)
            assert (status.phase, status.round) == (Phase.EVALUATE, 2)
            subjects[silo] = status.subjects
            models = [client.fetch_subject(run, status, number) for number in range(status.subjects)]
            seen[silo] = {params_sha256(params) for params in models[1:]}
            assert params_sha256(models[0]) == status.model_sha256
    assert subjects == {"a": 3, "b": 3, "c": 1}
    sent = {params_sha256(initial_params(run.head, seed=200 + ord(silo))) for silo in "ab"}
    assert seen == {"a": sent, "b": sent, "c": set()}
    with finished.client("c") as client:
        with pytest.raises(DataError, match="no model 1 to evaluate"):
            client.fetch_subject(run, status, 1)


def test_a_final_evaluation_counts_once_and_survives_a_restart(finished):
    evaluated = [SubjectEvaluation(number, Evaluation(0.1, 8 - number, 9)) for number in range(3)]
    report(finished, "a", evaluated)
    finished.stop()
    finished.start()
    report(finished, "a", evaluated[:1])  # again: the first one counts
    with finished.client("a") as client:
        run = client.join()
        assert client.wait(run, 2, 5).phase is Phase.FINISHED
    with finished.client("b") as client:
        status = client.wait(run, 2, 5)
        assert status.phase is Phase.EVALUATE
        client.fetch_subject(run, status, 2)  # payloads are still there
    report(finished, "b", [])  # declines
    report(finished, "c", evaluated[:1])
    updates = finished.state / "runs" / "run-1" / "updates"
    assert list(updates.iterdir()) == []
    found = evaluation_of(finished.settings(), None)
    assert (found["round"], found["all"]["correct"], found["all"]["count"]) == (2, 16, 18)
    assert [row["data"] for row in found["sites"]["rows"]] == ["a", "c"]
    assert {row["data"]: sorted(set(row) - {"data"}) for row in found["sites"]["rows"]} == {
        "a": ["a", "b", "final"],
        "c": ["final"],
    }
    shown = "\n".join(evaluation_lines(found))
    assert "clips of" in shown
    assert "model of round 2 on held-out clips: 16 of 18 correct (0.889)" in shown


@pytest.mark.parametrize(
    ("results", "round_number"),
    [
        ([SubjectEvaluation(3, Evaluation(0.1, 1, 2))], 2),
        ([SubjectEvaluation(0, Evaluation(0.1, 1, 2, (ClassCount(9, 1, 1),)))], 2),
        ([], 1),
    ],
)
def test_a_final_evaluation_of_unknown_round_model_or_class_is_refused(finished, results, round_number):
    with pytest.raises(DataError):
        report(finished, "a", results, round_number)
    assert evaluation_of(finished.settings(), None)["sites"] is None


def test_best_and_last_model_are_kept_and_can_be_exported(finished, tmp_path):
    models = finished.state / "runs" / "run-1" / "models"
    finished.stop()
    finished.start()
    kept = sorted(path.name for path in models.iterdir())
    assert kept == ["round-000001.safetensors", "round-000002.safetensors"]  # keep_models = 1, and the best one
    taken = take_model(finished.settings(), tmp_path / "best.safetensors", "best")
    assert taken["round"] == 1  # the only one that a later round evaluated
    now = status_of(finished.settings())
    assert (now["last"], now["best"]) == ({"round": 2, "accuracy": None}, {"round": 1, "accuracy": 0.4})
    assert "best model so far: round 1, accuracy 0.400" in status_lines(now)
    for silo in "abc":
        report(finished, silo, [SubjectEvaluation(0, Evaluation(0.1, 9, 10))])
    assert status_of(finished.settings())["best"] == {"round": 2, "accuracy": 0.9}


def test_without_an_evaluation_there_is_no_best_model(make_federation, tmp_path):
    federation = make_federation("a", rounds=2)
    federation.start()
    with pytest.raises(DataError, match="no model is known to be the best") as error:
        take_model(federation.settings(), tmp_path / "m.safetensors", "best")
    assert error.value.code == "not_measured"
    with pytest.raises(DataError, match="no silo has reported an evaluation of the model of round 7"):
        evaluation_of(federation.settings(), 7)


def test_history_shows_each_silos_bytes_and_codec_error(finished):
    rows = history_of(finished.settings())
    updates = rows[0]["updates"]
    assert [one["silo"] for one in updates] == ["a", "b", "c"]
    assert all(one["codec"] == "fp32" and one["codec_error"] == 0.0 for one in updates)
    assert all(one["received_bytes"] > 0 and one["sent_bytes"] > 0 for one in updates)
    assert rows[0]["bytes_per_silo"] == pytest.approx((rows[0]["received_bytes"] + rows[0]["sent_bytes"]) / 3)
    assert sum(one["received_bytes"] for one in updates) == rows[0]["received_bytes"]
    assert [one["codec"] for one in communication_cost_of(finished.settings())] == ["fp32"]
    shown = CliRunner().invoke(main.app, ["history", "--config", str(finished.config)]).output
    assert "MB/silo" in shown
    assert "95 % of the last accuracy" in shown


def reports(number, **silos):
    """The model of a round, and ``silo=(correct, count)``."""
    return ModelEvaluation(number, tuple((silo, Evaluation(1.0, *found)) for silo, found in sorted(silos.items())))


def with_limit(evaluations):
    most = most_clips((silo, one.count) for model in evaluations for silo, one in model.silos)
    return [replace(model, most=most) for model in evaluations]


def honest(correct):
    """Eight silos of 40 clips that agree about a model."""
    return {f"h{number}": (correct, 40) for number in range(8)}


MILLION = 1_000_000
GOOD, BAD = honest(38), honest(12)
LIARS = ("x", "y")


@pytest.mark.parametrize("count", [40, 120, MILLION])
def test_two_liars_of_ten_do_not_choose_a_bad_model(count):
    """They find the bad model perfect and the good one useless, with any count."""
    lies = [dict.fromkeys(LIARS, (correct, count)) for correct in (0, count)]
    evaluations = with_limit([reports(1, **GOOD, **lies[0]), reports(2, **BAD, **lies[1])])
    assert best_model(evaluations)[0] == 1


@pytest.mark.parametrize("count", [40, MILLION])
def test_liars_that_report_for_one_model_only_choose_no_bad_model(count):
    lies = dict.fromkeys(LIARS, (count, count))
    assert best_model(with_limit([reports(1, **GOOD), reports(2, **BAD, **lies), reports(3, **GOOD)]))[0] == 3


def test_one_liar_of_three_does_not_end_the_others_rounds():
    evaluations = [reports(1, a=(38, 40), b=(38, 40)), reports(2, a=(12, 40), b=(12, 40), x=(MILLION, MILLION))]
    assert best_model(with_limit(evaluations))[0] == 1


def test_counts_that_grow_slowly_do_not_raise_the_limit():
    evaluations = with_limit(
        [reports(number, **GOOD, x=(1, 40 * 2**number), y=(1, 40 * 2**number)) for number in range(1, 12)]
    )
    assert {model.most for model in evaluations} == {120}


def test_a_round_of_liars_alone_has_the_runs_limit():
    evaluations = with_limit(
        [*(reports(number, **GOOD) for number in (1, 2)), reports(3, x=(9, MILLION), y=(9, MILLION))]
    )
    assert evaluations[2].all.count == 240
    assert best_model(evaluations)[0] == 2


def test_a_claim_of_clips_is_at_most_three_medians_in_the_whole():
    evaluated = with_limit([reports(1, **GOOD, x=(0, MILLION))])[0]
    assert (evaluated.all.correct, evaluated.all.count) == (8 * 38, 8 * 40 + 120)


def test_a_claimed_loss_leaves_the_mean_finite():
    together = pool_evaluations([Evaluation(1.7e308, 1, 4), Evaluation(1.7e308, 1, 4), Evaluation(1.0, 1, 4)])
    assert together.loss < 1000


def test_a_claim_of_clips_does_not_set_the_classes_either():
    claimed = Evaluation(1.0, 0, MILLION, (ClassCount(0, 0, MILLION),))
    silos = [Evaluation(1.0, 9, 10, (ClassCount(0, 9, 10),))] * 2
    assert pool_classes([*silos, claimed], 30) == (ClassCount(0, 18, 50),)


def test_honest_counts_are_summed_as_they_are():
    evaluated = with_limit([reports(1, a=(5, 10), b=(20, 30), c=(8, 12), d=(9, 14))])[0]
    assert evaluated.all == pool_evaluations([one for _, one in evaluated.silos])


def test_gains_are_reported_where_the_run_asks_for_them(make_federation):
    run = {"rounds": 1, "min_silos": 2, "final_evaluation": '"model"', "gains": "true"}
    federation = make_federation("a", "b", **run)
    federation.start()
    for silo in "ab":
        answer(federation, silo, correct=3, shared=False, answered=0)
    with federation.client("a") as client:
        assert client.wait(client.join(), 1, 10).phase is Phase.EVALUATE
    for silo, final, alone in (("a", 7, 8), ("b", 9, 6)):
        results = [
            SubjectEvaluation(0, Evaluation(0.1, final, 10)),
            SubjectEvaluation(OWN_HEAD, Evaluation(0.1, alone, 10)),
        ]
        report(federation, silo, results, 1)
    found = evaluation_of(federation.settings(), None)
    assert found["all"]["correct"] == 16, "heads of the silos' own are no part of it"
    assert found["sites"] is None
    gains = found["gains"]
    assert [(row["silo"], round(row["gain"], 9)) for row in gains["silos"]] == [("a", -0.1), ("b", 0.3)]
    assert (round(gains["median"], 9), gains["gained"]) == (0.1, 1)
    shown = "\n".join(evaluation_lines(found))
    assert "median +10.0 points, -10.0 to +30.0; more than 0 in 1" in shown


def test_a_gain_is_only_of_silos_that_report_both_figures(make_federation):
    """Those of the others are in no sum, so nothing about them can be found by subtracting."""
    run = {"rounds": 1, "min_silos": 3, "final_evaluation": '"model"', "gains": "true"}
    federation = make_federation("a", "b", "c", **run)
    federation.start()
    for silo in "abc":
        answer(federation, silo, correct=3, shared=False, answered=0)
    with federation.client("a") as client:
        assert client.wait(client.join(), 1, 10).phase is Phase.EVALUATE
    final, alone = (SubjectEvaluation(one, Evaluation(0.1, 5, 10)) for one in (0, OWN_HEAD))
    report(federation, "a", [final, alone], 1)
    report(federation, "b", [final], 1)
    assert evaluation_of(federation.settings(), None)["gains"]["silos"] == [
        {"silo": "a", "gain": 0.0, "final": 0.5, "own": 0.5, "count": 10, "by_class": []}
    ]
    report(federation, "c", [final], 1)
    gains = evaluation_of(federation.settings(), None)["gains"]
    assert (len(gains["silos"]), gains["median"], gains["least"], gains["largest"]) == (1, 0.0, 0.0, 0.0)


def test_an_own_head_that_no_run_asks_for_is_refused(finished):
    results = [SubjectEvaluation(0, Evaluation(0.1, 1, 2)), SubjectEvaluation(OWN_HEAD, Evaluation(0.1, 1, 2))]
    with pytest.raises(DataError, match="model 256"):
        report(finished, "a", results)
