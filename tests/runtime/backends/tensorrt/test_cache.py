"""The node's engines: found only when whole, only for their key, only in a folder of this user."""

import os

import pytest
from flamest.base.errors import DataError, StorageError
from flamest.runtime.backends.tensorrt.cache import EngineKey, VerdictKey, open_cache
from flamest.runtime.backends.tensorrt.verdict import Verdict
from flamest.runtime.bundle.graph_records import EngineOptions, EngineRecord

KEY = EngineKey("a" * 64, "11.4.0.106", "NVIDIA H100", "9.0", EngineOptions())
PLAN = EngineRecord("cnn.plan", "a" * 64, "11.4.0.106", "12.8", "570.1", "NVIDIA H100", "9.0", EngineOptions(), 12.5)


@pytest.fixture
def cache(tmp_path):
    return open_cache(tmp_path / "plans")


def test_an_engine_is_found_with_its_record(cache):
    path = cache.keep(KEY, PLAN, b"native code")
    kept = cache.find(KEY)
    assert (kept.record, kept.data) == (PLAN, b"native code")
    assert path.parent == cache.folder
    assert {file.stat().st_mode & 0o777 for file in cache.folder.iterdir()} == {0o600}


@pytest.mark.parametrize(
    "other",
    [
        {"onnx_sha256": "b" * 64},
        {"tensorrt": "10.3.0"},
        {"gpu": "NVIDIA L4"},
        {"compute_capability": "8.9"},
        {"options": EngineOptions(tf32=True)},
    ],
)
def test_another_graph_version_gpu_or_option_is_another_engine(cache, other):
    cache.keep(KEY, PLAN, b"native code")
    fields = {name: getattr(KEY, name) for name in KEY.__struct_fields__}
    assert cache.find(EngineKey(**{**fields, **other})) is None


def test_an_engine_with_a_changed_byte_is_not_found(cache):
    path = cache.keep(KEY, PLAN, b"native code")
    path.write_bytes(b"Native code")
    assert cache.find(KEY) is None


@pytest.mark.parametrize("suffix", [".plan", ".json"])
def test_half_an_entry_is_not_found(cache, suffix):
    path = cache.keep(KEY, PLAN, b"native code")
    path.with_suffix(suffix).unlink()
    assert cache.find(KEY) is None
    cache.keep(KEY, PLAN, b"native code")
    path.with_suffix(".json").write_text("{")
    assert cache.find(KEY) is None


def test_a_record_under_another_key_is_not_found(cache):
    cache.keep(KEY, PLAN, b"native code")
    other = EngineKey("b" * 64, "11.4.0.106", "NVIDIA H100", "9.0", EngineOptions())
    for suffix in (".plan", ".json"):
        os.rename(cache.folder / f"{KEY.digest}{suffix}", cache.folder / f"{other.digest}{suffix}")
    assert cache.find(other) is None


def test_a_link_is_not_followed(cache, tmp_path):
    path = cache.keep(KEY, PLAN, b"native code")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        cache.find(KEY)


def test_the_folder_is_made_for_this_user_alone(tmp_path):
    folder = open_cache(tmp_path / "a" / "b").folder
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o702])
def test_a_folder_that_is_open_to_others_is_refused(tmp_path, mode):
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans").chmod(mode)
    with pytest.raises(DataError, match="open to others") as caught:
        open_cache(tmp_path / "plans")
    assert caught.value.code == "UNTRUSTED"
    assert "chmod 700" in caught.value.fix


def test_a_folder_of_another_user_or_a_link_is_refused(tmp_path, monkeypatch):
    (tmp_path / "plans").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "plans")
    with pytest.raises(DataError, match="is a link"):
        open_cache(tmp_path / "link")
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    with pytest.raises(DataError, match="this is user 4321"):
        open_cache(tmp_path / "plans")


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot make the folder"):
        open_cache(tmp_path / "file" / "plans")


def test_the_default_folder_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert open_cache().folder == tmp_path / "flamest" / "plans"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_cache().folder == tmp_path / ".cache" / "flamest" / "plans"


JUDGED = VerdictKey("e" * 64, "a" * 64, "11.4.0.106", "13.0", "580.95.05", "NVIDIA H100", "9.0")
RIGHT = Verdict(15, 90, cuda_graphs=True, closest="output hidden: cosine 0.99999", seconds=41.5)


def test_a_verdict_is_kept_for_this_user_alone(cache):
    assert cache.verdict(JUDGED) is None
    cache.keep_verdict(JUDGED, RIGHT)
    assert cache.verdict(JUDGED) == RIGHT
    assert {file.stat().st_mode & 0o777 for file in cache.folder.iterdir()} == {0o600}


@pytest.mark.parametrize(
    "other",
    [
        {"engine_sha256": "f" * 64},
        {"onnx_sha256": "b" * 64},
        {"tensorrt": "10.16.1"},
        {"cuda": "12.8"},
        {"driver": "590.1"},
        {"gpu": "NVIDIA L4"},
        {"compute_capability": "8.9"},
        {"form": 0},
    ],
)
def test_another_engine_driver_or_gpu_has_no_verdict(cache, other):
    cache.keep_verdict(JUDGED, RIGHT)
    fields = {name: getattr(JUDGED, name) for name in JUDGED.__struct_fields__}
    assert cache.verdict(VerdictKey(**{**fields, **other})) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b'"wrong":"output cnn"', b'"wrong":""'),
        lambda data: data[:-9],
        lambda data: b"\xff" + data,
        lambda data: b"[" * 100_000,
        lambda data: b"",
    ],
    ids=["changed", "cut", "not text", "deep", "empty"],
)
def test_a_verdict_that_was_changed_is_none(cache, change):
    cache.keep_verdict(JUDGED, Verdict(15, 90, cuda_graphs=True, closest="", seconds=1.0, wrong="output cnn"))
    (file,) = cache.folder.iterdir()
    assert change(file.read_bytes()) != file.read_bytes()
    file.write_bytes(change(file.read_bytes()))
    assert cache.verdict(JUDGED) is None


def test_a_verdict_behind_a_link_or_of_another_entry_is_none(cache, tmp_path):
    cache.keep_verdict(JUDGED, RIGHT)
    (file,) = cache.folder.iterdir()
    other = VerdictKey("f" * 64, *(getattr(JUDGED, name) for name in JUDGED.__struct_fields__[1:]))
    (cache.folder / f"{other.digest}.verdict").write_bytes(file.read_bytes())
    assert cache.verdict(other) is None
    (tmp_path / "elsewhere").write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    assert cache.verdict(JUDGED) is None
