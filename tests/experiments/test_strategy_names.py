"""Strategies by their short names, as a command line takes them."""

from __future__ import annotations

import pytest
from flamest.base.errors import UsageError
from flamest.experiments.strategy_names import STRATEGIES, parse_strategy, strategy_title
from flamest.fedproto.records import Strategy


@pytest.mark.parametrize(
    ("text", "strategy", "title"),
    [
        ("fedavg", Strategy(), "FedAvg"),
        ("fedprox", Strategy("fedprox", mu=0.01), "FedProx mu=0.01"),
        ("fedprox:0.1", Strategy("fedprox", mu=0.1), "FedProx mu=0.1"),
        ("feddyn:alpha=0.01", Strategy("feddyn", alpha=0.01), "FedDyn alpha=0.01"),
        ("fedavgm", Strategy(server_momentum=0.5), "FedAvgM server_momentum=0.5"),
        ("median", Strategy(combine="median"), "median"),
        ("trimmed_mean:0.25", Strategy(combine="trimmed_mean", trim=0.25), "trimmed mean trim=0.25"),
        ("fedavg:clip=2:average_last=3", Strategy(clip=2, average_last=3), "FedAvg average_last=3 clip=2"),
    ],
)
def test_a_word_names_a_strategy_and_its_settings(text, strategy, title):
    assert parse_strategy(text) == strategy
    assert strategy_title(strategy) == title


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_short_name_stands_for_a_strategy(name):
    assert strategy_title(parse_strategy(name))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fedpox", "did you mean fedprox"),
        ("fedavg:0.1", "no value of its own"),
        ("fedprox:mo=1", "no setting 'mo'"),
        ("fedprox:much", "fedprox:much"),
        ("fedprox:0", "mu"),
        ("fedprox:name=feddyn", "no setting 'name'"),
        ("", "no strategy ''"),
    ],
)
def test_a_wrong_strategy_is_refused_with_the_way_to_write_it(text, message):
    with pytest.raises(UsageError, match=message) as raised:
        parse_strategy(text)
    assert raised.value.fix


def test_a_problem_of_a_strategy_is_said_once():
    with pytest.raises(UsageError) as raised:
        parse_strategy("fedprox:-1")
    assert raised.value.message.count("needs more than 0") == 1
