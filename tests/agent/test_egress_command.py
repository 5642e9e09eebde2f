"""``flamest-agent egress`` never takes a wrong folder for a silo that nothing has left."""

from __future__ import annotations

from flamest.agent.cli import app
from flamest.agent.egress import Ledger
from typer.testing import CliRunner


def egress(folder):
    return CliRunner().invoke(app, ["egress", "--state", str(folder)])


def test_a_folder_without_a_ledger_is_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        done = egress(folder)
        assert done.exit_code == 65
        assert "holds no egress ledger" in done.output
        assert "--config agent.toml" in done.output


def test_what_the_coordinator_named_reaches_no_terminal_raw(tmp_path):
    Ledger.open(tmp_path).append("refused", run="\x1b[2J", round=1, code="min_samples", detail="too few")
    done = egress(tmp_path)
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output
    assert "\\x1b[2J" in done.output
