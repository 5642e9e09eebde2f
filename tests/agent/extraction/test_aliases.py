"""This silo's words for the run's classes, and the classes that a word may have meant."""

import pytest
from flamest.agent.extraction.aliases import LabelAliases, alias_problems, near_misses

CLASSES = ["fall_down", "walking", "OpenDoor", "wave", "sit", "stand", "Straße queren"]


@pytest.mark.parametrize(
    ("label", "near"),
    [
        ("fall_down", []),
        ("Fall Down", ["fall_down"]),
        ("FallingDown", ["fall_down"]),
        ("down fall", ["fall_down"]),
        ("walk", ["walking"]),
        ("Walks", ["walking"]),
        ("open-doors", ["OpenDoor"]),
        ("opening door", ["OpenDoor"]),
        ("waving", ["wave"]),
        ("wavve", ["wave"]),
        ("STRASSE QUEREN", ["Straße queren"]),
        ("Sturz", []),
        ("", []),
        ("!!!", []),
    ],
)
def test_a_near_miss_is_a_class_in_other_spelling(label, near):
    assert near_misses(label, CLASSES) == near


def test_an_alias_is_the_runs_class_and_other_words_stay():
    aliases = LabelAliases({"Sturz": "fall_down"})
    assert aliases.all_of(["Sturz", "wave", None]) == ["fall_down", "wave", None]


def test_aliases_of_aliases_and_empty_ones_are_problems():
    assert alias_problems({"Sturz": "fall"}) == []
    assert len(alias_problems({"Sturz": "Fall", "Fall": "fall_down", "": "x", "y": ""})) == 4
