"""Asynchronous optimisation: mixing, and the simulated order of reports."""

from __future__ import annotations

import pytest
import torch
from flamest.base.errors import InvariantError, UsageError
from flamest.experiments.baselines.fedasync import Arrival, mix, mixing_share, schedule_arrivals, versions_needed


def test_mixing_is_its_formula_except_for_counters():
    current = {"w": torch.tensor([1.0, 2.0]), "batches": torch.tensor(5)}
    arrived = {"w": torch.tensor([3.0, -2.0]), "batches": torch.tensor(9)}
    mixed = mix(current, arrived, 0.25)
    assert mixed["w"].tolist() == [1.5, 1.0]
    assert int(mixed["batches"]) == 9
    assert current["w"].tolist() == [1.0, 2.0]
    with pytest.raises(InvariantError):
        mix(current, {"w": torch.tensor([3.0])}, 0.25)


def test_a_stale_report_has_a_smaller_share():
    assert mixing_share(0.6, 0, 0.5) == 0.6
    assert mixing_share(0.6, 3, 0.5) == pytest.approx(0.3)
    assert mixing_share(0.6, 3, 0.0) == 0.6


def test_a_silo_starts_with_the_model_of_its_last_report():
    found = schedule_arrivals([10, 100], arrivals=8, epochs=1, slowest=1.0, seed=0)
    assert [one.time for one in found] == sorted(one.time for one in found)
    assert sum(one.silo == 0 for one in found) >= 7  # ten times as quick
    for place, one in enumerate(found):
        before = [number for number in range(place) if found[number].silo == one.silo]
        assert one.base == (before[-1] + 1 if before else 0)
    assert found == schedule_arrivals([10, 100], arrivals=8, epochs=1, slowest=1.0, seed=0)
    assert versions_needed([Arrival(0, 0, 1.0), Arrival(1, 0, 2.0), Arrival(0, 1, 3.0)], 1) == {0, 1}
    with pytest.raises(UsageError):
        schedule_arrivals([10], arrivals=1, epochs=1, slowest=0.5, seed=0)
