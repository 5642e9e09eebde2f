"""Strategies by their short names, as the Python API and the experiments' commands take them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ..base.errors import UsageError
from ..coordinator.strategies.composition import strategy_problems
from ..fedproto.records import Strategy

# Short names, and the settings that each stands for where the caller gives no others.
STRATEGIES: Mapping[str, Mapping[str, Any]] = {
    "fedavg": {},
    "fedprox": {"name": "fedprox", "mu": 0.01},
    "feddyn": {"name": "feddyn", "alpha": 0.01},
    "fedavgm": {"server_momentum": 0.5},
    "fedadam": {"server_adam": 0.01},
    "median": {"combine": "median"},
    "trimmed_mean": {"combine": "trimmed_mean", "trim": 0.25},
}
# The setting that a value without a name is for.
MAIN_SETTING = {
    "fedprox": "mu",
    "feddyn": "alpha",
    "fedavgm": "server_momentum",
    "fedadam": "server_adam",
    "trimmed_mean": "trim",
}
TITLES = {
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "feddyn": "FedDyn",
    "fedavgm": "FedAvgM",
    "fedadam": "FedAdam",
    "median": "median",
    "trimmed_mean": "trimmed mean",
}
# What a run of each short name has: a setting, and whether its value is the strategy's.
_OWN_SETTING: Mapping[str, tuple[str, Callable[[Strategy], bool]]] = {
    "fedavgm": ("server_momentum", lambda strategy: strategy.server_momentum > 0),
    "fedadam": ("server_adam", lambda strategy: strategy.server_adam > 0),
    "median": ("combine", lambda strategy: strategy.combine == "median"),
    "trimmed_mean": ("combine", lambda strategy: strategy.combine == "trimmed_mean"),
}
SYNTAX = "NAME, NAME:VALUE or NAME:SETTING=VALUE, as in fedavg,fedprox:0.1,fedavg:clip=2"


def parse_strategy(text: str) -> Strategy:
    """Return the strategy that a word names: ``fedprox``, ``fedprox:0.1``, ``fedavg:clip=2:average_last=3``.

    Raises UsageError on an unknown name or setting, and on values that no run can have.
    """
    name, *parts = text.split(":")
    if name not in STRATEGIES:
        near = difflib.get_close_matches(name, STRATEGIES, 1)
        raise UsageError(
            f"there is no strategy {name!r}" + (f"; did you mean {near[0]}?" if near else ""),
            fix=f"known: {', '.join(STRATEGIES)}; {SYNTAX}",
        )
    settings = dict(STRATEGIES[name])
    for part in parts:
        key, equals, value = part.rpartition("=")
        key = key if equals else MAIN_SETTING.get(name, "")
        if key not in Strategy.__struct_fields__ or key == "name":
            problem = f"no setting {key!r}" if equals else f"no value of its own ({value!r})"
            known = ", ".join(field for field in Strategy.__struct_fields__ if field != "name")
            raise UsageError(f"strategy {text!r}: {name} has {problem}", fix=f"{SYNTAX}; settings: {known}")
        settings[key] = value
    try:
        strategy = msgspec.convert(settings, Strategy, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"strategy {text!r}: {error}", fix=SYNTAX) from error
    problems = dict.fromkeys([*strategy.problems(), *strategy_problems(strategy)])  # both check the silos' terms
    if problems:
        raise UsageError(f"strategy {text!r}: {'; '.join(problems)}", fix=SYNTAX)
    return strategy


def check_short_name(name: str, strategy: Strategy) -> None:
    """Raise UsageError where settings given next to a short name make another strategy of it."""
    for other, (setting, is_on) in _OWN_SETTING.items():
        value = getattr(strategy, setting)
        if other == name and not is_on(strategy):
            raise UsageError(
                f"{setting}={value!r} is not {name}, which has {setting}={STRATEGIES[name][setting]!r}",
                fix=f"write strategy={_short_name(strategy)!r}, or leave {setting} out",
            )
        if name == "fedavg" and is_on(strategy):
            raise UsageError(
                f"{setting}={value!r} is not {name}, but {other}",
                fix=f"write strategy={other!r}, which {setting} belongs to",
            )


def strategy_title(strategy: Strategy) -> str:
    """Return the strategy's name for a table's row: ``FedProx mu=0.01``, ``FedAvg``, ``FedAvg clip=2``."""
    defaults = Strategy()
    changed = {
        field: value
        for field in Strategy.__struct_fields__
        if field != "name" and (value := getattr(strategy, field)) != getattr(defaults, field)
    }
    shown = [
        f"{field}={value}" if isinstance(value, str) else f"{field}={value:g}"
        for field, value in changed.items()
        if field != "combine"
    ]
    return " ".join([TITLES[_short_name(strategy)], *shown])


def _short_name(strategy: Strategy) -> str:
    """The short name that a strategy's settings begin from."""
    if strategy.name != "fedavg":
        return strategy.name
    if strategy.combine != "mean":
        return strategy.combine
    return "fedadam" if strategy.server_adam else "fedavgm" if strategy.server_momentum else "fedavg"
