"""The bundle that comes with the package: found by its name, unpacked whole, and opened like any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from flamest.base.errors import StorageError
from flamest.runtime.bundle import packaged
from flamest.runtime.bundle.opening import open_bundle
from flamest.runtime.bundle.packaged import MINIWORLD, miniworld_bundle, resolve_bundle


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_packaged_bundle_opens_with_every_hash_checked(tmp_path):
    folder = miniworld_bundle(tmp_path / "bundle")
    bundle = open_bundle(folder)
    assert bundle.manifest.extractor == "blip+slow"
    assert bundle.manifest.width == 384
    assert folder == tmp_path / "bundle"


def test_the_name_miniworld_leads_to_the_packaged_bundle(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = resolve_bundle(Path(MINIWORLD))
    assert folder.is_relative_to(cache / "flamest")
    assert open_bundle(folder).manifest.width == 384
    assert resolve_bundle(Path("elsewhere")) == Path("elsewhere")


def test_a_folder_called_miniworld_comes_before_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / MINIWORLD).mkdir()
    assert resolve_bundle(Path(MINIWORLD)) == Path(MINIWORLD)


def test_the_unpacked_bundle_is_shared_by_later_calls():
    folder = miniworld_bundle()
    before = (folder / "vision.onnx").stat().st_ino
    assert miniworld_bundle() == folder
    assert (folder / "vision.onnx").stat().st_ino == before


def test_what_another_process_has_just_unpacked_stays(monkeypatch):
    holds, unpacked_there = packaged._holds, []

    def late(folder: Path, files: dict[str, bytes]) -> bool:
        if unpacked_there:
            return holds(folder, files)
        packaged._write(files, folder)
        unpacked_there.append((folder / "vision.onnx").stat().st_ino)
        return False

    monkeypatch.setattr(packaged, "_holds", late)
    assert (miniworld_bundle() / "vision.onnx").stat().st_ino == unpacked_there[0]


def _change_a_file(folder: Path) -> None:
    (folder / "vision.onnx").write_bytes(b"another graph")


def _remove_a_file(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _add_a_file(folder: Path) -> None:
    (folder / "extra.onnx").write_bytes(b"")


def _link_a_file(folder: Path) -> None:
    os.link(folder / "cnn.onnx", folder.parent / "second-name")


@pytest.mark.parametrize("damage", [_change_a_file, _remove_a_file, _add_a_file, _link_a_file])
def test_a_damaged_bundle_in_the_cache_is_unpacked_again(damage):
    damage(miniworld_bundle())
    assert open_bundle(miniworld_bundle()).manifest.width == 384


def test_a_folder_with_files_is_refused_and_kept(tmp_path):
    (tmp_path / "notes").write_text("keep")
    with pytest.raises(StorageError, match="not empty"):
        miniworld_bundle(tmp_path)
    assert (tmp_path / "notes").read_text() == "keep"


def test_an_unusable_cache_is_reported_with_the_way_out(cache):
    cache.write_text("a file where the cache would be")
    with pytest.raises(StorageError) as raised:
        miniworld_bundle()
    assert "XDG_CACHE_HOME" in raised.value.fix


def test_a_user_without_a_home_learns_which_variable_to_set(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("flamest.runtime.bundle.packaged.cache_folder", lambda name: None)
    with pytest.raises(StorageError, match="no home folder") as raised:
        miniworld_bundle()
    assert "XDG_CACHE_HOME" in raised.value.fix


@pytest.mark.parametrize(
    "words",
    [
        ("flamest.export", "inspect", MINIWORLD),
        ("flamest.export", "check", MINIWORLD),
        ("flamest.agent", "doctor", "--bundle", MINIWORLD),
    ],
    ids=["inspect", "check", "doctor"],
)
def test_commands_take_the_name_for_the_folder(words, tmp_path):
    command = [sys.executable, "-m", *words, "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])
