import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from flamest.base.errors import DataError, LockedError, StorageError
from flamest.base.files import (
    FileLock,
    FileStamp,
    new_directory,
    open_regular,
    read_regular,
    sha256_file,
    write_atomic,
)


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


def not_files(folder):
    """Paths that are no regular file, of every kind."""
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "link to pipe").symlink_to(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    return [folder / "folder", folder / "pipe", folder / "link to pipe", folder / "socket", "/dev/zero", "a\0b"]


@pytest.mark.parametrize(
    "use", [open_regular, sha256_file, lambda path: read_regular(path, largest=100)], ids=["open", "hash", "read"]
)
def test_only_a_regular_file_is_read_and_nothing_else_blocks(tmp_path, use):
    started = time.monotonic()
    for path in not_files(tmp_path):
        with pytest.raises(DataError) as caught:
            use(path)
        assert caught.value.code == "not_a_file"
    with pytest.raises(StorageError):
        use(tmp_path / "missing")
    assert time.monotonic() - started < 2


def test_a_link_is_followed_only_where_it_may_be(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", largest=3) == b"abc"
    with pytest.raises(DataError) as caught:
        read_regular(tmp_path / "link", largest=3, follow=False)
    assert caught.value.code == "not_a_file"


def test_a_name_is_looked_up_in_the_open_folder_whatever_replaces_it(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"opened")
    folder = os.open(tmp_path / "a", os.O_RDONLY | os.O_DIRECTORY)
    try:
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "file").write_bytes(b"exchanged")
        assert read_regular("file", largest=10, folder=folder) == b"opened"
    finally:
        os.close(folder)


def test_a_file_beyond_its_limit_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(60 << 30)
    started = time.monotonic()
    for use in (read_regular, sha256_file):
        with pytest.raises(DataError) as caught:
            use(tmp_path / "sparse", largest=1 << 30)
        assert caught.value.code == "too_large"
    assert time.monotonic() - started < 1


def test_a_file_longer_than_it_says_is_read_to_its_limit():
    assert os.stat("/proc/self/maps").st_size == 0
    assert read_regular("/proc/self/maps", largest=1 << 24)
    for use in (read_regular, sha256_file):
        with pytest.raises(DataError) as caught:
            use("/proc/self/maps", largest=100)
        assert caught.value.code == "too_large"


def test_a_signal_ends_the_hashing_of_a_sparse_file(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(60 << 30)
    script = (
        "import sys; from pathlib import Path\n"
        "from flamest.base.files import Stopped, sha256_file; from flamest.base.process import Shutdown\n"
        "shutdown = Shutdown.on_signals(); print('ready', flush=True)\n"
        "try: sha256_file(Path(sys.argv[1]), stop=lambda: shutdown.requested)\n"
        "except Stopped: print('stopped')"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "sparse")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as hashing:
        assert hashing.stdout.readline() == "ready\n"
        hashing.send_signal(signal.SIGTERM)
        assert hashing.communicate(timeout=20)[0] == "stopped\n"


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
