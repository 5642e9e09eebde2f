from pathlib import Path

import msgspec
import pytest
from flamest.base.errors import SettingsError
from flamest.base.settings import load_settings


class Train(msgspec.Struct, forbid_unknown_fields=True):
    batch_size: int = 128
    epochs: int = 5


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    state: Path = Path("state")
    train: Train = msgspec.field(default_factory=Train)


def written(tmp_path, text):
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return path


def test_good_settings_are_decoded(tmp_path):
    settings = load_settings(written(tmp_path, 'name = "a"\nstate = "s"\n[train]\nepochs = 7\n'), Settings)
    assert settings.state == Path("s")
    assert (settings.name, settings.train.epochs, settings.train.batch_size) == ("a", 7, 128)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('name = "a"\nnom = 1', r"agent.toml: unknown key 'nom'; known: name, state, train"),
        ('name = "a"\n[train]\nlr = 1', r"agent.toml: unknown key 'lr' in \[train\]; known: batch_size, epochs"),
        ('name = "a"\nstate = 3', r"agent.toml: state: expected `str`, got `int`"),
        ('name = "a"\n[train]\nepochs = "x"', r"agent.toml: train.epochs: expected `int`, got `str`"),
        ("[train]\nepochs = 1", r"agent.toml: object missing required field `name`|missing required field `name`"),
        ("name = ", r"agent.toml: not valid TOML"),
    ],
)
def test_invalid_setting_is_named_with_the_expected_value(tmp_path, text, expected):
    with pytest.raises(SettingsError, match=expected) as caught:
        load_settings(written(tmp_path, text), Settings)
    assert caught.value.exit_code == 78


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml", Settings)
