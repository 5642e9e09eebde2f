import numpy as np
import pytest
from flamest.agent.evaluate import calibration_error
from flamest.fedproto.calibration import (
    Calibration,
    fit_temperature,
    is_known,
    known_scores,
    make_calibration,
    probabilities,
    rank_threshold,
)

CLASSES = 6


def clips(seed, count, *, sharpness=1.0, classes=CLASSES):
    """Draw logits whose softmax at temperature 1/sharpness is true of the classes drawn with them."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (count, classes))
    logits[np.arange(count), random.integers(classes, size=count)] += 4
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    y = (chances.cumsum(axis=1) > random.random((count, 1))).argmax(axis=1)
    return logits * sharpness, y.astype(np.int64)


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 7.0])
def test_the_temperature_of_sharpened_logits_is_found_again(sharpness):
    logits, y = clips(0, 4000, sharpness=sharpness)
    assert fit_temperature(logits, y) == pytest.approx(sharpness, rel=0.06)


def test_calibrated_probabilities_of_new_clips_are_right_as_often_as_they_say():
    calibration = make_calibration(*clips(1, 1000, sharpness=3.0))
    logits, y = clips(2, 4000, sharpness=3.0)
    before, after = probabilities(logits), probabilities(logits, calibration)
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    right = after.argmax(axis=1) == y
    assert calibration_error(after.max(axis=1), right) < 0.03 < calibration_error(before.max(axis=1), right)


def test_temperature_stays_finite_where_every_held_out_clip_is_right():
    logits = np.eye(CLASSES)[np.arange(60) % CLASSES] * 5
    temperature = fit_temperature(logits, np.arange(60) % CLASSES)
    assert 0.2 < temperature < 5
    assert probabilities(logits / temperature).max() < 0.9999


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_known_clips_reach_their_thresholds_as_often_as_asked(coverage):
    reached = []
    for seed in range(40):
        calibration = make_calibration(*clips(seed, 300), coverage=coverage)
        new = probabilities(clips(1000 + seed, 500)[0], calibration)
        reached.append(is_known(new, calibration).mean())
    error = np.std(reached) / np.sqrt(len(reached))
    assert abs(np.mean(reached) - coverage) < max(2.5 * error, 0.004)


def test_every_class_with_enough_clips_keeps_the_coverage_by_itself():
    shares = np.zeros((30, CLASSES))
    for seed in range(30):
        logits, y = clips(seed, 1200)
        scales = np.where(np.arange(1200) % 2, 0.5, 1.0)[:, None]  # half of the clips are less sure
        logits = np.where((logits.argmax(axis=1) == 0)[:, None], logits * scales, logits)
        calibration = make_calibration(logits[:600], y[:600], coverage=0.9)
        probability = probabilities(logits[600:], calibration)
        known, answers = is_known(probability, calibration), probability.argmax(axis=1)
        shares[seed] = [known[answers == number].mean() for number in range(CLASSES)]
        assert calibration.classes == tuple(range(CLASSES))
    assert np.abs(shares.mean(axis=0) - 0.9).max() < 0.02


def test_classes_with_few_clips_share_a_threshold():
    logits, y = clips(3, 400)
    few = logits.argmax(axis=1) != 2
    few[:5] = True
    calibration = make_calibration(logits[few][:200], y[few][:200])
    assert 2 not in calibration.classes
    assert calibration.thresholds[2] not in [calibration.thresholds[number] for number in calibration.classes]


def test_too_few_clips_promise_nothing():
    assert rank_threshold(np.arange(18.0), 0.95) is None
    assert rank_threshold(np.arange(19.0), 0.95) == 0.0
    assert make_calibration(*clips(4, 18)) is None
    assert make_calibration(np.empty((0, 3)), np.empty(0, np.int64)) is None


def test_a_model_without_calibration_knows_every_clip():
    assert is_known(probabilities(clips(5, 20)[0]), None).all()


def test_the_score_is_that_of_softened_logits():
    logits, _ = clips(6, 50)
    softened = probabilities(logits / 3.0).max(axis=1)
    found = known_scores(probabilities(logits), 3.0)
    np.testing.assert_allclose(found, np.log(softened / (1 - softened)), atol=1e-9)


def test_certain_and_impossible_probabilities_have_finite_scores():
    sure = np.array([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    assert np.isfinite(known_scores(sure)).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("thresholds", (0.0,)),
        ("thresholds", (0.0, float("inf"))),
        ("coverage", 1.0),
        ("softening", 0.5),
        ("clips", -1),
        ("classes", (1, 0)),
        ("classes", (2,)),
        ("silos", -1),
    ],
)
def test_a_calibration_out_of_bounds_is_named_by_its_field(field, value):
    fields = {"temperature": 1.0, "thresholds": (0.0, 0.0)} | {field: value}
    assert [problem.split(":")[0] for problem in Calibration(**fields).problems(2)] == [field]
