"""``flamest-agent run --check-config``: the settings, and where they are weaker than the defaults."""

import json

import pytest
from flamest.agent.cli.main import app
from typer.testing import CliRunner


@pytest.fixture
def check_policy(tmp_path, monkeypatch):
    monkeypatch.setattr("flamest.agent.settings.check_files", lambda files: None)
    (tmp_path / "features.sqlite").touch()

    def check(policy: str, *options: str) -> str:
        file = tmp_path / "agent.toml"
        connection = '[coordinator]\naddress = "h:1"\nca = "c"\ncertificate = "s"\nkey = "k"\n'
        file.write_text(f'state = "state"\nstore = "features.sqlite"\n{connection}[policy]\n{policy}\n')
        done = CliRunner().invoke(app, ["run", "--config", str(file), "--check-config", *options])
        assert done.exit_code == 0
        return done.stdout

    return check


def test_check_config_names_every_weakening_of_the_policy(check_policy):
    weak = "evaluation_noise = 0\nmin_samples = 4\nmin_samples_override = true"
    assert check_policy(weak).count("OVERRIDE: ") == 2
    assert len(json.loads(check_policy(weak, "--json"))["overrides"]) == 2
    assert "OVERRIDE" not in check_policy("hold_out = 0.3")
