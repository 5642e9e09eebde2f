"""The options that all commands of a program share: where its settings are."""

from pathlib import Path

import pytest
from flamest.base.errors import UsageError
from flamest.base.options import settings_folder, settings_path

FIX = "flamest-agent keygen NAME"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A current folder without settings, next to a folder ``site`` that has them."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "agent.toml").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path


def test_config_names_the_settings_file_or_its_folder(home):
    file = home / "site" / "agent.toml"
    assert settings_path("agent.toml", file, fix=FIX) == file
    assert settings_path("agent.toml", home / "site", fix=FIX) == file
    assert settings_path("agent.toml", None, home / "site", fix=FIX) == file


def test_settings_in_the_current_folder_are_found_without_an_option(home, monkeypatch):
    monkeypatch.chdir(home / "site")
    assert settings_path("agent.toml", None, fix=FIX) == Path("agent.toml")
    assert settings_folder("agent.toml", None) == Path()


def test_missing_settings_end_with_the_way_to_get_some(home):
    with pytest.raises(UsageError, match=r"no agent\.toml in the current folder") as missing:
        settings_path("agent.toml", None, fix=FIX)
    assert missing.value.fix == FIX


def test_a_folder_is_the_given_one_or_that_of_the_settings(home):
    site = home / "site"
    assert settings_folder("agent.toml", None, site) == site
    assert settings_folder("agent.toml", site) == site
    assert settings_folder("agent.toml", site / "agent.toml") == site


def test_config_and_dir_may_not_name_two_places(home):
    file = home / "site" / "agent.toml"
    assert settings_path("agent.toml", file, home / "site", fix=FIX) == file
    with pytest.raises(UsageError, match="is not in --dir"):
        settings_path("agent.toml", file, home / "empty", fix=FIX)
