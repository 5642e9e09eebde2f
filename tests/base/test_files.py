import os
import subprocess
import sys

import pytest
from flamest.base.errors import LockedError, StorageError
from flamest.base.files import FileLock, FileStamp, new_directory, sha256_file, write_atomic


def test_a_written_file_is_whole_and_leaves_no_temporary(tmp_path):
    write_atomic(tmp_path / "a", b"one")
    write_atomic(tmp_path / "a", b"two", mode=0o600)
    assert (tmp_path / "a").read_bytes() == b"two"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["a"]


def test_a_failed_write_keeps_the_old_content(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def interrupted():
        with new_directory(tmp_path / "bundle") as building:
            (building / "x").write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        interrupted()
    assert os.listdir(tmp_path) == []
    with new_directory(tmp_path / "bundle") as building:
        (building / "x").write_text("all")
    assert (tmp_path / "bundle" / "x").read_text() == "all"
    with pytest.raises(StorageError, match="not empty"), new_directory(tmp_path / "bundle"):
        pass


def test_a_second_process_cannot_take_the_lock(tmp_path):
    script = (
        "import sys; from pathlib import Path; from flamest.base.files import FileLock\n"
        "FileLock.take(Path(sys.argv[1]), owner='test')"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "lock")]
    with FileLock.take(tmp_path / "lock", owner="the test"):
        with pytest.raises(LockedError, match="the test is running already"):
            FileLock.take(tmp_path / "lock", owner="the test")
        assert b"LockedError" in subprocess.run(command, capture_output=True, check=False).stderr
    assert subprocess.run(command, check=False).returncode == 0


def test_a_file_hash_is_sha256_and_a_missing_file_is_named(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(StorageError, match="missing"):
        sha256_file(tmp_path / "missing")


def test_a_file_stamp_changes_with_content_and_with_replacement(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = FileStamp.of(path)
    assert FileStamp.of(path) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(0, first.mtime_ns))  # an older time does not hide the write
    written = FileStamp.of(path)
    assert written != first
    write_atomic(path, b"two")
    assert FileStamp.of(path).inode != written.inode


def test_the_content_of_a_stamp_outlives_a_change_of_permissions(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = FileStamp.of(path)
    path.chmod(0o600)
    (tmp_path / "b").hardlink_to(path)
    assert FileStamp.of(path) != first
    assert FileStamp.of(path).content == first.content
    path.write_bytes(b"twice")
    assert FileStamp.of(path).content != first.content
