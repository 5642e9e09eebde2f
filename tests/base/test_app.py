"""Every program and every command of it: -h, --version, usage errors, help."""

from __future__ import annotations

import importlib
import json
import tomllib
from pathlib import Path

import flamest
import pytest
import typer
from flamest.base.app import App
from flamest.base.console import command
from flamest.base.extras import install_command
from flamest.base.options import JsonOption
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def app_of(program: str) -> App:
    app: App = importlib.import_module(PROGRAMS[program].split(":")[0]).app
    return app


def commands_of(program: str) -> list[list[str]]:
    """Return the words of every command of the program, hidden ones too; the first is empty."""
    found: list[list[str]] = []
    pending = [([], typer.main.get_command(app_of(program)))]
    while pending:
        words, node = pending.pop()
        found.append(words)
        pending += [([*words, name], inner) for name, inner in getattr(node, "commands", {}).items()]
    return found


def run(app: typer.Typer, *words: str):
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_every_command_has_version_and_a_short_help_option(program):
    for words in commands_of(program):
        shown = run(app_of(program), *words, "--version")
        assert (shown.exit_code, shown.stdout) == (0, f"{program} {flamest.__version__}\n"), words
        brief, full = run(app_of(program), *words, "-h"), run(app_of(program), *words, "--help")
        assert brief.exit_code == full.exit_code == 0, words
        assert brief.stdout == full.stdout, words
        assert "Usage: " in full.stdout, words
        assert "-h, --help" in full.stdout, words


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_a_usage_error_of_every_command_honours_json(program):
    for words in commands_of(program):
        ended = run(app_of(program), *words, "--no-such-option", "--json")
        said = json.loads(ended.stdout.splitlines()[-1])
        assert ended.exit_code == said["exit_code"] == 2, words
        assert said["error"]["code"] == "usage"
        assert "no such option: --no-such-option" in said["error"]["message"], words
        assert said["error"]["fix"].endswith("--help"), words


def test_the_version_honours_json():
    shown = run(app_of("flamest-coordinator"), "silo", "list", "--version", "--json")
    assert json.loads(shown.stdout) == {"program": "flamest-coordinator", "version": flamest.__version__}


def test_a_usage_error_shows_the_usage_and_the_fix():
    ended = run(app_of("flamest-agent"), "features", "--out", "m.npz")
    assert (ended.exit_code, ended.stdout) == (2, "")
    usage, error, fix = ended.stderr.splitlines()
    assert usage.startswith("Usage: ")
    assert error == "error: missing option '--store'"
    assert fix.strip().startswith("fix: ")
    assert fix.endswith("features --help")


def test_json_after_two_dashes_is_an_argument():
    ended = run(app_of("flamest-agent"), "train", "--no-such-option", "--", "--json")
    assert (ended.exit_code, ended.stdout) == (2, "")


def test_the_list_of_commands_has_whole_first_sentences():
    for program in PROGRAMS:
        assert "..." not in run(app_of(program), "--help").stdout.replace("[ARGS]...", "")


def test_build_is_the_export_without_a_command():
    app = app_of("flamest-export")
    bare, build = run(app, "--backend", "caffe", "--json"), run(app, "build", "--backend", "caffe", "--json")
    assert bare.stdout == build.stdout != ""
    assert "--hardware-compat" in run(app, "build", "--help").stdout
    helped = run(app, "--help").stdout
    assert "--hardware-compat" not in helped
    assert "flamest-export --backend onnx --out DIR" in " ".join(helped.split())


def test_options_are_listed_by_panel_and_the_general_ones_last():
    app = App("flamest-x", add_completion=False)

    @app.command()
    @command
    def one(
        out: str = typer.Option("", rich_help_panel="Result"), as_json: JsonOption = False
    ) -> dict[str, str] | None:
        """Do one thing."""

    lines = run(app, "-h").stdout.splitlines()
    assert lines.index("Result:") < lines.index("Options:")
    assert [line.split()[0] for line in lines[lines.index("Options:") + 1 :]] == ["--json", "--version", "-h,"]


def test_a_command_names_its_own_extra_and_otherwise_the_programs():
    app = App("flamest-x", extras=("agent", "coordinator"))

    @app.command()
    @command
    def whole() -> None:
        """Need what the program needs."""
        typer.echo(install_command("grpcio", "experiments"))
        typer.echo(install_command("torch", "export"))

    @app.command(extras=("coordinator",))
    @command
    def part() -> None:
        """Need less."""
        typer.echo(install_command("grpcio", "experiments"))

    assert run(app, "whole").stdout.splitlines() == [
        "pip install 'flamest[agent,coordinator]'",
        "pip install 'flamest[agent,coordinator,export]'",
    ]
    assert run(app, "part").stdout == "pip install 'flamest[coordinator]'\n"
    assert install_command("grpcio", ("agent", "coordinator")) == (
        "pip install 'flamest[agent]' or pip install 'flamest[coordinator]'"
    )
