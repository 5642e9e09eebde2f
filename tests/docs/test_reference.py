"""The reference pages that are made from the code are what the code says."""

from __future__ import annotations

import shutil

import msgspec
import pytest
from flamest.docs.tooling import api_page, commands_page, error_pages, pages, settings_pages, words


@pytest.mark.parametrize("page", sorted(pages.PAGES))
def test_a_reference_page_says_what_the_code_says(page):
    assert pages.filled(page) == (pages.DOCS / page).read_text(), f"docs/{page} is stale: run `make reference`"


def test_a_changed_page_is_stale_until_it_is_written_again(tmp_path):
    for page in pages.PAGES:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pages.DOCS / page, tmp_path / page)
    page = tmp_path / "reference" / "exit-codes.md"
    whole = pages.filled("reference/exit-codes.md", tmp_path)
    page.write_text(f"Mine first.\n\n{whole.replace('| 65 |', '| 66 |')}\nMine last.\n")
    assert "reference/exit-codes.md" in pages.stale_pages(tmp_path)
    assert "reference/exit-codes.md" in pages.write_pages(tmp_path)
    assert page.read_text() == f"Mine first.\n\n{whole}\nMine last.\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="exit-codes"):
        pages.stale_pages(tmp_path)


def test_every_setting_has_a_meaning_in_the_code():
    assert settings_pages.undocumented_keys() == []


def test_every_error_code_has_a_meaning_and_no_other_one():
    assert error_pages.unexplained_codes() == []
    assert error_pages.superfluous_notes() == []


def test_every_option_and_argument_has_a_help_text():
    lines = [line for line in commands_page.commands().splitlines() if line.startswith("| `")]
    assert len(lines) > 100
    assert [line for line in lines if line.endswith("| |")] == []


class Example(msgspec.Struct):
    a: int  # on its line
    # Above it,
    # in two lines.
    b: float = 0.5
    c: tuple[str, ...] = (
        "x",  # inside it
    )
    d: bool = False


def test_the_comment_of_a_field_is_found_wherever_it_is():
    assert words.field_comments(Example) == {
        "a": "on its line",
        "b": "Above it, in two lines.",
        "c": "inside it",
        "d": "",
    }


def test_a_message_keeps_its_words_and_names_what_it_is_filled_with():
    source = 'DataError(f"{printable_path(path)} has {len(found)} files, {self._most} at most", code="x")'
    call = error_pages.ast.parse(source, mode="eval").body
    assert error_pages._message(call.args[0]) == "PATH has FOUND files, MOST at most"


def test_every_public_name_and_member_has_a_docstring():
    assert api_page.undocumented_names() == []


def test_the_sections_of_a_docstring_are_taken_apart():
    text = "Do it.\n\nMore.\n\nArgs:\n    a: One,\n        and on.\n    b: Two.\n"
    text += "\nReturns:\n    A thing.\n\nRaises:\n    DataError: Not so."
    assert api_page._parsed(text) == (
        "Do it.\n\nMore.",
        {"Args": {"a": "One, and on.", "b": "Two."}, "Returns": {"": "A thing."}, "Raises": {"DataError": "Not so."}},
    )
