"""Letters of labels: none that is not seen or turns the reading direction, but where a script needs it."""

import pytest
from flamest.agent.extraction.name_letters import name_problem

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
UNSEEN = "\u00ad\u034f\u115f\u180e\u200b\u200c\u200d\u2028\u2029\u2060\u2063\u2800\u3164\ufe0f\ufeff\uffa0\ufff9"
TAGS = "\U000e0041\U000e0100"
CONTROL = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)])) + "\ud83d"


@pytest.mark.parametrize("letter", BIDI + UNSEEN + TAGS + CONTROL)
@pytest.mark.parametrize("name", ["fa{}ll", "{}fall", "fall{}", "\u0633\u0642\u0648\u0637 {} \u0633", "{}"])
def test_unseen_and_turning_letters_are_problems(letter, name):
    assert f"U+{ord(letter):04X} at place {name.index('{') + 1}" in name_problem(name.format(letter))


@pytest.mark.parametrize(
    "name",
    [
        "fall down-2 (bed)",
        "chute à l'arrêt",
        "Übergang",
        "падение",
        "سقوط",
        "می\u200cافتد",  # Persian, with its joiner between letters
        "क्\u200dष",  # Devanagari, after a virama
        "ന്\u200d",  # Malayalam, at a word's end
        "נפילה",
        "転倒",
        "e\u0301tage",
        "sit\u00a0down",
        "🙂",
    ],
)
def test_names_of_all_scripts_are_allowed(name):
    assert name_problem(name) == ""


@pytest.mark.parametrize("name", ["fa\u200dll", "سقوط\u200c", "می\u200c\u200cافتد", "می\u200c افتد"])
def test_joiners_where_no_script_needs_them_are_problems(name):
    assert name_problem(name)
