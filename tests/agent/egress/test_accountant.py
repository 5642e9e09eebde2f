"""The accountant's epsilon is dp-accounting's to 1e-6."""

import math
import warnings

import pytest
from flamest.agent.egress import accountant
from flamest.agent.egress.accountant import ORDERS, Spend, epsilon_of, renyi

# (q, z, steps), and epsilon at delta 1e-5 and 1e-7 by dp-accounting 0.6.0, RdpAccountant with its own orders: from a
# large silo to one whose every step looks at every clip.
KEPT = [
    ((0.01, 1.0, 5000), 4.588976841671959, 5.598883003499595),
    ((0.001, 0.7, 20000), 2.307165729518768, 3.228199766716386),
    ((0.048, 1.0, 105), 3.959121194547537, 5.157181741581135),
    ((0.048, 1.1, 8400), 34.96280382357985, 39.56797400956794),
    ((0.25, 2.0, 40), 4.36037657904264, 5.396347457343373),
    ((0.5, 1.5, 10), 6.445379645791594, 7.939701732890338),
    ((0.9, 3.0, 7), 3.732317899102781, 4.523976999442909),
    ((1.0, 4.0, 25), 6.122757864599009, 7.292088744094985),
    ((0.02, 20.0, 1), 0.004041633667422124, 0.008543266302796603),
    ((0.3, 0.4, 3), 21.646379136651863, 26.149775407579142),
]


@pytest.mark.parametrize(("mechanism", "at_5", "at_7"), KEPT)
def test_epsilon_equals_that_of_dp_accounting(mechanism, at_5, at_7):
    spend = Spend(*mechanism)
    assert epsilon_of([spend], 1e-5) == pytest.approx(at_5, abs=1e-6)
    assert epsilon_of([spend], 1e-7) == pytest.approx(at_7, abs=1e-6)


def test_epsilon_of_a_history_equals_that_of_dp_accounting():
    """Compared where the package is installed (`pip install 'flamest[privacy]'`): rounds of a silo that grows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dp = pytest.importorskip("dp_accounting")
        from dp_accounting import rdp
    history = [Spend(128 / rows, noise, 5 * math.ceil(rows / 128)) for rows in (300, 700, 2655) for noise in (0.8, 2.0)]
    theirs = rdp.RdpAccountant()
    for count, spend in enumerate(history, start=1):
        event = dp.PoissonSampledDpEvent(spend.rate, dp.GaussianDpEvent(spend.multiplier))
        theirs.compose(event, spend.steps)
        for delta in (1e-3, 1e-5, 1e-9):
            assert epsilon_of(history[:count], delta) == pytest.approx(float(theirs.get_epsilon(delta)), abs=1e-6)


@pytest.mark.parametrize("order", [2.0, 3.0, 9.0])
def test_the_divergence_of_whole_orders_is_the_integral(order):
    """By Simpson's rule over the two densities' ratio, with nothing of the series."""
    q, z, points = 0.2, 1.3, 20_001
    width = 40 * z / (points - 1)
    total = 0.0
    for place in range(points):
        x = -15 * z + place * width
        ratio = 1 - q + q * math.exp((2 * x - 1) / (2 * z * z))
        height = math.exp(-x * x / (2 * z * z)) / (z * math.sqrt(2 * math.pi)) * ratio**order
        total += height * (1 if place in (0, points - 1) else 4 if place % 2 else 2)
    assert renyi(q, z, order) == pytest.approx(math.log(total * width / 3) / (order - 1), rel=1e-9)


def test_nothing_spends_nothing_and_no_noise_spends_everything():
    assert epsilon_of([], 1e-5) == 0.0
    assert epsilon_of([Spend(0.0, 1.0, 10)], 1e-5) == 0.0
    assert epsilon_of([Spend(0.1, 0.0, 1)], 1e-5) == math.inf


def test_more_steps_more_clips_and_less_noise_spend_more():
    middle = epsilon_of([Spend(0.1, 1.0, 20)], 1e-5)
    for worse in (Spend(0.1, 1.0, 21), Spend(0.11, 1.0, 20), Spend(0.1, 0.9, 20)):
        assert epsilon_of([worse], 1e-5) > middle
    assert epsilon_of([Spend(0.1, 1.0, 10)] * 2, 1e-5) == pytest.approx(middle)
    assert len(ORDERS) == 156


def test_a_coordinator_that_changes_the_rate_each_round_makes_no_round_slower(monkeypatch):
    """A tenth of a second goes into each rate: it is spent once, not again for all rates in every round."""
    asked = []
    monkeypatch.setattr(accountant, "renyi", lambda *spend: asked.append(spend) or renyi(*spend))
    accountant._divergences.cache_clear()
    spends = [Spend(batch / 100, 4.0, 1) for batch in range(1, 31)]
    for rounds in range(1, len(spends) + 1):
        epsilon_of(spends[:rounds], 1e-5)
    assert len(asked) == len(spends) * len(ORDERS)
    accountant._divergences.cache_clear()
