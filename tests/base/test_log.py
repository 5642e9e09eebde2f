import json
import logging

import msgspec
import pytest
from flamest.agent.settings import TEMPLATE, AgentSettings
from flamest.base.errors import SettingsError
from flamest.base.log import Log, LogSettings, configure_logging
from flamest.coordinator.admin.config_template import render_config_template
from flamest.coordinator.settings import CoordinatorSettings


@pytest.fixture
def quiet_root():
    root = logging.getLogger("flamest")
    yield
    root.handlers[:] = []
    root.propagate = True


def test_events_are_logfmt_with_quotes_where_needed(capsys, quiet_root):
    configure_logging()
    Log("coordinator").info("round_closed", round=12, why="two words", share=0.25)
    line = capsys.readouterr().err.strip()
    assert line.endswith('level=info part=coordinator event=round_closed round=12 why="two words" share=0.25')


def test_a_line_break_in_a_value_cannot_forge_an_event(capsys, quiet_root):
    configure_logging()
    Log("agent").info("x", name="a\nlevel=error event=forged")
    assert capsys.readouterr().err.count("\n") == 1


def test_json_lines_are_json(capsys, quiet_root, monkeypatch):
    monkeypatch.setenv("FLAMEST_LOG", "json")
    configure_logging()
    Log("agent").warning("late", round=3)
    entry = json.loads(capsys.readouterr().err)
    assert (entry["level"], entry["event"], entry["round"]) == ("warning", "late", 3)


def test_level_and_format_come_from_command_line_environment_or_settings(capsys, quiet_root, monkeypatch):
    settings = LogSettings(level="error", format="json")
    assert configure_logging(settings) == settings
    monkeypatch.setenv("FLAMEST_LOG_LEVEL", "debug")
    monkeypatch.setenv("FLAMEST_LOG", "logfmt")
    assert configure_logging(settings) == LogSettings(level="debug", format="logfmt")
    assert configure_logging(settings, level="warning").level == "warning"
    Log("agent").info("quiet")
    Log("agent").warning("loud")
    assert capsys.readouterr().err.strip().endswith("level=warning part=agent event=loud")


@pytest.mark.parametrize("name", ["FLAMEST_LOG", "FLAMEST_LOG_LEVEL"])
def test_a_log_variable_with_another_word_is_a_settings_error(name, monkeypatch, quiet_root):
    monkeypatch.setenv(name, "loud")
    with pytest.raises(SettingsError, match=f"{name}=loud in the environment: expected ") as error:
        configure_logging()
    assert error.value.fix == f"unset {name}, or set it to one of these"


@pytest.mark.parametrize(
    ("kind", "template"),
    [
        (AgentSettings, TEMPLATE.format(key="north-key.pem")),
        (CoordinatorSettings, render_config_template(["a", "b"], "0" * 64)),
    ],
)
def test_log_settings_are_in_both_files_and_their_templates(kind, template):
    shown = template.replace("# [log]", "[log]").replace("# level", "level").replace("# format", "format")
    decoded = msgspec.toml.decode(shown)
    assert decoded["log"] == {"level": "info", "format": "logfmt"}
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    assert fields["log"] is LogSettings
