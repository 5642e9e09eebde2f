import json

import pytest
from flamest.base.console import command, say
from flamest.base.errors import DataError, printable


@command
def good(*, as_json: bool) -> dict[str, int]:
    return {"clips": 3}


@command
def bad(*, as_json: bool) -> None:
    raise DataError("clip 7 is empty", fix="remove it", code="video_empty")


@command
def unreadable(*, as_json: bool) -> None:
    open("/nowhere/at/all")  # noqa: PTH123, SIM115


def test_the_result_is_one_json_line(capsys):
    good(as_json=True)
    assert json.loads(capsys.readouterr().out) == {"clips": 3}
    good(as_json=False)
    assert capsys.readouterr().out == ""


def test_an_error_is_reported_on_stderr_and_as_json(capsys):
    with pytest.raises(SystemExit) as ended:
        bad(as_json=True)
    out, err = capsys.readouterr()
    assert ended.value.code == 65
    assert err == "error: clip 7 is empty\n  fix: remove it\n"
    assert json.loads(out) == {
        "error": {"code": "video_empty", "message": "clip 7 is empty", "fix": "remove it"},
        "exit_code": 65,
    }


def test_a_file_error_names_the_file_and_exits_74(capsys):
    with pytest.raises(SystemExit) as ended:
        unreadable(as_json=False)
    assert ended.value.code == 74
    assert "/nowhere/at/all" in capsys.readouterr().err


HOSTILE = "\x1b[2Jclean\x07\x9b31m"


@command
def quoting(*, as_json: bool) -> None:
    raise DataError(f"no backend:\n  run '{HOSTILE}'", fix=f"report {HOSTILE}")


def test_text_from_elsewhere_is_printed_with_its_control_characters_escaped(capsys):
    say(f"Läufer {HOSTILE}\nerror: forged")
    assert capsys.readouterr().out == "Läufer \\x1b[2Jclean\\x07\\x9b31m\\nerror: forged\n"


def test_an_error_message_keeps_its_lines_and_no_control_character(capsys):
    for as_json in (True, False):
        with pytest.raises(SystemExit):
            quoting(as_json=as_json)
        out, err = capsys.readouterr()
        assert err.splitlines() == [
            "error: no backend:",
            "  run '\\x1b[2Jclean\\x07\\x9b31m'",
            "  fix: report \\x1b[2Jclean\\x07\\x9b31m",
        ]
        assert (out + err).replace("\n", "").isprintable()


def test_printable_text_has_only_printable_characters():
    every = "".join(map(chr, range(0x300))) + "\u200b\u202e\u2028\udcff\U0001f600"
    assert printable(every).isprintable()
    assert printable("Zoë's clip 7") == "Zoë's clip 7"
