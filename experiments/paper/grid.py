"""Lists of settings: an experiment once for every combination, a row for each in one table.

``--beta 0.1,0.6 --strategies fedavg,fedprox:0.1`` makes four variants of the inputs. A row that several variants have
in common, since a setting does not matter to it, is there once, without that setting in its name.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...base.errors import UsageError
from ..strategy_names import parse_strategy, strategy_title
from .inputs import ExperimentInputs
from .jobs import Job
from .table_specs import RowSpec, TableSpec

Choices = Mapping[str, Sequence[Any]]  # values by option; an option with one value is set, not varied


@dataclass(frozen=True)
class Variant:
    """One combination: the values that it has, and their text in a row's name, by option."""

    values: Mapping[str, Any]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Number:
    """An option that takes numbers: its bounds and its text in a row's name."""

    kind: type[int] | type[float]
    smallest: float
    label: Callable[[Any], str]


def counted(number: int, thing: str) -> str:
    """``1 epoch``, ``5 epochs``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


NUMBERS = {
    "epochs": Number(int, 1, lambda value: counted(value, "epoch")),
    "batch_size": Number(int, 1, lambda value: f"batch {value}"),
    "learning_rate": Number(float, 1e-9, lambda value: f"rate {value:g}"),
    "silos": Number(int, 1, lambda value: counted(value, "silo")),
    "beta": Number(float, 0.001, lambda value: f"β={value:g}"),
}


def parse_choices(given: Mapping[str, str | None]) -> dict[str, tuple[Any, ...]]:
    """Return the values of the options that are given, each a list separated by commas.

    Raises UsageError naming the option and the value that is none.
    """
    choices: dict[str, tuple[Any, ...]] = {}
    for option, text in given.items():
        if text is None:
            continue
        words = [word.strip() for word in text.split(",")]
        values = [parse_strategy(word) if option == "strategies" else _number(option, word) for word in words]
        choices[option] = tuple(dict.fromkeys(values))
    return choices


def _number(option: str, word: str) -> int | float:
    number = NUMBERS[option]
    flag = f"--{option.replace('_', '-')}"
    try:
        value = number.kind(word)
    except ValueError:
        value = float("nan")
    if not number.smallest <= value < float("inf"):
        what = "whole numbers" if number.kind is int else "numbers"
        example = {"epochs": "1,5", "batch_size": "16,128", "silos": "4,8", "beta": "0.1,0.6"}.get(option, "0.001,0.01")
        raise UsageError(
            f"{flag} {word!r}: expected {what} from {number.smallest:g}, separated by commas",
            fix=f"for example {flag} {example}",
        )
    return value


def variants(choices: Choices) -> list[Variant]:
    """Every combination of the values; labels only for options with several."""
    names = list(choices)
    return [
        Variant(
            dict(zip(names, values, strict=True)),
            {name: label_of(name, value) for name, value in zip(names, values, strict=True) if len(choices[name]) > 1},
        )
        for values in itertools.product(*choices.values())
    ]


def label_of(option: str, value: Any) -> str:
    """The value's text in a row's name."""
    return strategy_title(value) if option == "strategies" else NUMBERS[option].label(value)


@dataclass(frozen=True)
class GridInputs:
    """Inputs of one variant with its labels."""

    labels: Mapping[str, str]
    inputs: ExperimentInputs


def grid_table(build: Callable[[ExperimentInputs], TableSpec], grid: Sequence[GridInputs]) -> TableSpec:
    """The table of every variant as one, its rows in the variants' order."""
    tables = [build(variant.inputs) for variant in grid]
    if len(tables) == 1:
        return tables[0]
    holders: dict[tuple[str, tuple[Job, ...], str], list[int]] = {}
    specs: dict[tuple[str, tuple[Job, ...], str], RowSpec] = {}
    for place, table in enumerate(tables):
        for row in table.rows:
            key = (row.name, row.jobs, row.status)
            specs.setdefault(key, row)
            holders.setdefault(key, []).append(place)
    rows = tuple(
        dataclasses.replace(row, name=_name(row.name, [grid[place].labels for place in holders[key]]))
        for key, row in specs.items()
    )
    first = tables[0]
    title = first.title if len({table.title for table in tables}) == 1 else first.title.partition(",")[0]
    notes = tuple(dict.fromkeys(note for table in tables for note in table.notes))
    return dataclasses.replace(first, title=title, rows=rows, notes=notes)


def _name(name: str, labels: Sequence[Mapping[str, str]]) -> str:
    """The row's name with the labels that all variants of the row share, unless the name has them already."""
    shared = [
        text
        for option, text in labels[0].items()
        if all(others[option] == text for others in labels) and text not in name
    ]
    return ", ".join([name, *shared])
