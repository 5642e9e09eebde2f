"""Hints that repeat the place of a program's settings."""

from pathlib import Path

import pytest
from flamest.base.errors import DataError
from flamest.base.place import Program

CENTRE = Program("centre", "centre.toml", ("run", "status", "silo add", "silo renew"), start="centre init DIR")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("centre status", "centre status --dir fed"),
        ("centre status --config centre.toml", "centre status --dir fed"),
        ("`centre silo renew NAME`; then centre run", "`centre silo renew --dir fed NAME`; then centre run --dir fed"),
        ("centre run --dir other", "centre run --dir other"),
        ("centre run --config x.toml, or centre status", "centre run --config x.toml, or centre status --dir fed"),
        ("centre init DIR", "centre init DIR"),
        ("set a in centre.toml; b in x-centre.toml", "set a in fed/centre.toml; b in x-centre.toml"),
        ("centre runs, other-centre status-file", "centre runs, other-centre status-file"),
    ],
)
def test_a_hint_repeats_the_place_that_was_given(text, hint):
    assert CENTRE.place(None, Path("fed")).hint(text) == hint


def test_in_the_current_folder_a_hint_needs_no_place():
    assert CENTRE.place(None).hint("centre run, then centre status") == "centre run, then centre status"
    assert CENTRE.place(Path("a b/x.toml")).hint("set it in centre.toml") == "set it in a b/x.toml"
    assert CENTRE.place(Path("a b/x.toml")).hint("centre run") == "centre run --config 'a b/x.toml'"


def test_an_errors_fix_names_the_place():
    @CENTRE.errors_name_the_place
    def body(*, config: Path | None, folder: Path | None) -> None:
        raise DataError("nothing yet", fix="centre run")

    with pytest.raises(DataError) as error:
        body(config=None, folder=Path("fed"))
    assert error.value.fix == "centre run --dir fed"
