"""Settings files that are no settings: exit code 78 and the file's name, within a second or two."""

import os

import msgspec
import pytest
from flamest.base.errors import SettingsError
from flamest.base.settings import load_settings


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: int = 0
    names: tuple[str, ...] = ()


CONTENTS = {
    "invalid UTF-8": b"number = 1\nnames = ['\xff\xfe']\n",
    "zero byte": b"number = 1\0\n",
    "nested arrays": b"names = " + b"[" * 100_000,
    "nested tables": b"names = " + b"{a=" * 50_000,
    "long number": b"number = " + b"9" * 10_000,
    "2^70": b"number = 1180591620717411303424\nnames = 3",
    "key twice": b"number = 1\nnumber = 2\n",
    "binary": bytes(range(256)),
    "two megabytes": b"#" * (2 << 20),
    "dotted keys": b".".join([b"a"] * 100_000) + b" = 1",
    "float for a number": b"number = nan",
}


@pytest.mark.parametrize("content", CONTENTS)
def test_hostile_settings_are_named(tmp_path, content):
    path = tmp_path / "agent.toml"
    path.write_bytes(CONTENTS[content])
    with pytest.raises(SettingsError, match=r"agent\.toml"):
        load_settings(path, Settings)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_settings_that_are_no_file_are_named(tmp_path, make):
    make(tmp_path / "agent.toml")
    with pytest.raises(SettingsError, match=r"agent\.toml"):
        load_settings(tmp_path / "agent.toml", Settings)
