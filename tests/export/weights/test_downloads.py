"""Downloads from a model zoo on loopback: whole or not at all, whatever answers."""

from __future__ import annotations

import collections
import errno
import hashlib
import http.client
import io
import itertools
import os
import shutil
import ssl
from dataclasses import replace
from email.message import Message
from types import SimpleNamespace

import pytest
import torch
from flamest.base.errors import DataError, StorageError, UnreachableError
from flamest.export.weights import video
from flamest.export.weights.download import ATTEMPTS, Wanted, _OnlyHttps, _Refused, download
from flamest.export.weights.fetching import fetch_sources
from flamest.export.weights.source import parse_source
from flamest_tests_web_server import (
    LFS_POINTER,
    LOGIN_PAGE,
    cut_after,
    endless_redirect,
    login_page,
    serving,
    status,
)

DATA = bytes(range(256)) * 9000  # 2.3 MB
PATH = "/zoo/SLOW_8x8_R50.pyth"


@pytest.fixture
def web():
    with serving() as web:
        web.files[PATH] = DATA
        yield web


def fetch(web, to, **known) -> list[float]:
    """Download; return the pauses between attempts."""
    pauses: list[float] = []
    download(Wanted(web.address + PATH, "SLOW_8x8_R50.pyth", **known), to, fix="bring it", pause=pauses.append)
    return pauses


def refused(web, to, **known) -> UnreachableError:
    with pytest.raises(UnreachableError) as caught:
        fetch(web, to, **known)
    assert list(to.parent.iterdir()) == [], "nothing is left behind"
    assert caught.value.fix.endswith("bring it")
    assert caught.value.message.startswith("SLOW_8x8_R50.pyth could not be downloaded from 127.0.0.1:")
    return caught.value


def test_a_file_arrives_whole_with_its_progress(web, tmp_path, capsys):
    to = tmp_path / "new" / "folder" / "w.pyth"
    assert fetch(web, to, bytes=len(DATA), sha256=hashlib.sha256(DATA).hexdigest()) == []
    assert to.read_bytes() == DATA
    assert [path.name for path in to.parent.iterdir()] == ["w.pyth"]
    assert "SLOW_8x8_R50.pyth from 127.0.0.1:" in capsys.readouterr().err


def test_a_cut_download_continues_where_it_ended(web, tmp_path):
    web.faults[PATH] = cut_after(DATA, 700_000)
    assert fetch(web, tmp_path / "w") == [1.0, 1.0, 1.0]
    assert (tmp_path / "w").read_bytes() == DATA
    assert web.ranges == [f"bytes={count}-" for count in (700_000, 1_400_000, 2_100_000)]


def test_a_server_that_ignores_ranges_sends_it_from_the_beginning(web, tmp_path):
    first = [True]

    def whole_only(answer):
        if first:
            first.clear()
            cut_after(DATA, 700_000)(answer)
        else:
            answer.send(200, DATA)

    web.faults[PATH] = whole_only
    fetch(web, tmp_path / "w", sha256=hashlib.sha256(DATA).hexdigest())
    assert (tmp_path / "w").read_bytes() == DATA


def test_half_a_download_is_not_kept(web, tmp_path):
    web.faults[PATH] = cut_after(DATA, 0)
    assert "the connection ended before the file did" in refused(web, tmp_path / "w").message


def test_what_a_killed_download_left_is_removed(web, tmp_path):
    (tmp_path / ".w.999999999.part").write_bytes(b"half")
    (tmp_path / f".w.{os.getppid()}.part").write_bytes(b"another export, at work")
    fetch(web, tmp_path / "w")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".w.{os.getppid()}.part", "w"]


def test_a_web_page_is_not_kept(web, tmp_path):
    web.faults[PATH] = login_page
    error = refused(web, tmp_path / "w")
    assert (error.code, "is a web page" in error.message) == ("bad_download", True)
    web.faults[PATH] = lambda answer: answer.send(200, b"\n " + LOGIN_PAGE, {"Content-Type": "text/plain"})
    assert "is a web page" in refused(web, tmp_path / "w").message


@pytest.mark.parametrize("known", [{"bytes": len(DATA) + 1}, {"largest": 1000}, {"sha256": "0" * 64}])
def test_another_size_or_hash_is_not_kept(web, tmp_path, known):
    error = refused(web, tmp_path / "w", **known)
    assert error.code == "bad_download"
    assert "expected" in error.message


@pytest.mark.parametrize(
    ("code", "said", "attempts"),
    [
        (401, "needs a login", 1),
        (403, "is refused", 1),
        (404, "is not there", 1),
        (410, "Gone", 1),
        (429, "too many requests", 5),
        (500, "has a fault", 5),
        (503, "has a fault", 5),
    ],
)
def test_an_http_status_is_explained(web, tmp_path, code, said, attempts):
    web.faults[PATH] = status(code)
    assert said in refused(web, tmp_path / "w").message
    assert len(web.asked) == attempts


def test_a_busy_server_is_asked_again_when_it_says(web, tmp_path):
    left = [2]

    def busy(answer):
        left[0] -= 1
        answer.send(429, b"", {"Retry-After": "7"}) if left[0] >= 0 else answer.send_file(DATA)

    web.faults[PATH] = busy
    assert fetch(web, tmp_path / "w") == [7.0, 7.0]
    left[0] = 2
    web.faults[PATH] = lambda answer: answer.send(429, b"", {"Retry-After": "86400"})
    with pytest.raises(UnreachableError):
        assert max(fetch(web, tmp_path / "v")) == 60.0


def test_redirects_end_and_never_leave_encryption(web, tmp_path):
    web.faults[PATH] = endless_redirect
    assert "the redirects do not end" in refused(web, tmp_path / "w").message
    request = SimpleNamespace(full_url="https://zoo.example/w.pyth")
    with pytest.raises(_Refused, match="without encryption"):
        _OnlyHttps().redirect_request(request, None, 302, "", Message(), "http://zoo.example/w.pyth")


def test_no_server_and_no_name_are_told_apart(web, tmp_path):
    for url, said in (
        ("http://127.0.0.1:1/w", "the server cannot be reached"),
        ("http://no-such-name.invalid/w", "is not known here"),
    ):
        with pytest.raises(UnreachableError, match=said) as caught:
            download(Wanted(url, "w"), tmp_path / "w", fix="bring it", pause=lambda _: None)
        assert "https_proxy" in caught.value.fix


def test_a_full_disk_is_a_storage_error(web, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 0, 1_000_000))
    with pytest.raises(StorageError, match=r"0\.00 GB are free") as caught:
        fetch(web, tmp_path / "w")
    assert caught.value.code == "disk_full"
    assert list(tmp_path.iterdir()) == []


SOCKET_FAILURES = [
    (OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH)), "the server cannot be reached"),
    (OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN)), "the server cannot be reached"),
    (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), "the encrypted connection broke off"),
]


@pytest.mark.parametrize(("failure", "said"), SOCKET_FAILURES)
def test_a_socket_that_fails_is_no_full_disk(web, tmp_path, monkeypatch, failure, said):
    read, calls = http.client.HTTPResponse.read, itertools.count()

    def once(answer, *arguments):
        if next(calls) == 1:
            raise failure
        return read(answer, *arguments)

    monkeypatch.setattr(http.client.HTTPResponse, "read", once)
    assert fetch(web, tmp_path / "a" / "w") == [1.0]
    assert (tmp_path / "a" / "w").read_bytes() == DATA
    assert web.ranges == [f"bytes={1 << 20}-"], "what had arrived is not fetched again"

    def always(*_):
        raise failure

    monkeypatch.setattr(http.client.HTTPResponse, "read", always)
    assert said in refused(web, tmp_path / "b" / "w").message


def test_a_disk_that_fails_is_no_network(web, tmp_path, monkeypatch):
    def fails(_):
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(StorageError, match="cannot be written"):
        fetch(web, tmp_path / "w")


@pytest.mark.parametrize("known", [{}, {"bytes": 1000}])
def test_without_a_network_nothing_is_waited_for(tmp_path, known):
    with pytest.raises(UnreachableError, match="the server cannot be reached"):
        download(
            Wanted("http://127.0.0.1:1/w", "w", **known),
            tmp_path / "w",
            fix="bring it",
            pause=lambda _: pytest.fail("waited"),
        )


def test_a_server_that_answered_is_asked_again(tmp_path):
    with serving() as web:
        web.files[PATH] = DATA
        web.faults[PATH] = cut_after(DATA, 700_000)
        pauses = []

        def gone(seconds):
            pauses.append(seconds)
            web.faults[PATH] = lambda answer: answer.connection.close()

        with pytest.raises(UnreachableError):
            download(Wanted(web.address + PATH, "w"), tmp_path / "w", fix="bring it", pause=gone)
    assert pauses == [1.0, 2.0, 4.0, 8.0][: len(pauses)]
    assert len(pauses) == ATTEMPTS - 1


@pytest.fixture
def zoo(web, tmp_path, monkeypatch):
    """PyTorch's cache in a folder of its own, and the zoo's address on loopback."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = video.VIDEO_WEIGHTS["slow"]
    monkeypatch.setitem(
        video.VIDEO_WEIGHTS, "slow", replace(weights, zoo=replace(weights.zoo, url=lambda: web.address + PATH))
    )
    return web


def small_checkpoint() -> bytes:
    """As the zoo has it: the tensors under model_state, and other values next to them."""
    buffer = io.BytesIO()
    torch.save({"model_state": collections.OrderedDict(w=torch.ones(100)), "epoch": 196, "cfg": "x"}, buffer)
    return buffer.getvalue()


def test_a_failed_zoo_download_leaves_no_cache_that_poisons_the_next_try(zoo, tmp_path):
    source, entry = parse_source("slow", "slow_r50"), video.VIDEO_WEIGHTS["slow"].zoo
    cached = tmp_path / "hub" / "checkpoints" / "SLOW_8x8_R50.pyth"
    for fault in (login_page, status(404), endless_redirect):
        zoo.faults[PATH] = fault
        with pytest.raises(UnreachableError, match=r"SLOW_8x8_R50\.pyth of slow_r50") as caught:
            video.fetch_zoo_file(entry, source)
        assert "--slow PATH/SLOW_8x8_R50.pyth" in caught.value.fix
        assert list(cached.parent.iterdir()) == []
    zoo.faults.clear()
    zoo.files[PATH] = small_checkpoint()
    assert video.fetch_zoo_file(entry, source) == cached
    assert video.load_checkpoint(cached).tensors["w"].sum() == 100
    zoo.faults[PATH] = status(500)
    assert video.fetch_zoo_file(entry, source) == cached, "the cache needs no network"


def test_the_offline_variable_forbids_zoo_downloads_too(zoo, tmp_path, monkeypatch):
    source, entry = parse_source("slow", "slow_r50"), video.VIDEO_WEIGHTS["slow"].zoo
    zoo.files[PATH] = small_checkpoint()
    for value in ("1", "True", "yes"):
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
        with pytest.raises(UnreachableError, match="HF_HUB_OFFLINE forbids the network") as caught:
            video.fetch_zoo_file(entry, source)
        assert caught.value.fix.startswith("unset HF_HUB_OFFLINE; or bring SLOW_8x8_R50.pyth")
    assert zoo.asked == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    cached = video.fetch_zoo_file(entry, source)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert video.fetch_zoo_file(entry, source) == cached, "the cache needs no network"


def test_the_offline_variable_does_not_stand_for_other_errors(web, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    web.faults[PATH] = status(404)
    assert "is not there" in refused(web, tmp_path / "w").message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LOGIN_PAGE, "is a web page: a proxy or a login page"),
        (LFS_POINTER, "is a Git LFS pointer"),
        (b"", "has 0 bytes"),
        (small_checkpoint()[:-200], "is cut short after"),
    ],
)
@pytest.mark.parametrize("name", ["SLOW_8x8_R50.pyth", "pytorch_model.bin"])
def test_what_another_program_left_in_the_cache_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        video.load_checkpoint(tmp_path / name)
    assert caught.value.code == "not_weights"
    assert caught.value.fix == f"remove it (rm {tmp_path / name}) and fetch it again"


def test_an_object_that_weights_only_refuses_is_named(tmp_path):
    import numpy as np

    torch.save({"model_state": {"w": torch.ones(100)}, "best": np.float64(0.7)}, tmp_path / "w.pyth")
    with pytest.raises(DataError, match=r"besides tensors it holds numpy\S*\.scalar, and reading that") as caught:
        video.load_checkpoint(tmp_path / "w.pyth")
    assert "Files that are refused" in caught.value.fix
    assert "weights_only=False" not in caught.value.message


def test_everything_is_fetched_before_an_export_begins(zoo, tmp_path, monkeypatch):
    """BLIP is 1 GB and its export takes minutes: a Slow that cannot be had is known before."""
    from flamest.export import bundle
    from flamest.export.networks.extractors import find_extractor
    from flamest.export.precision.choice import FP32

    zoo.faults[PATH] = status(404)
    monkeypatch.setattr(bundle, "export_bundle", lambda *_: pytest.fail("began"))
    sources = {"blip": parse_source("blip", "random:tiny"), "slow": parse_source("slow", "slow_r50")}
    request = bundle.ExportRequest(find_extractor("blip+slow"), sources, tmp_path / "bundle", precision=FP32)
    with pytest.raises(UnreachableError, match="SLOW_8x8_R50"):
        bundle.build_bundle(request)
    zoo.faults.clear()
    zoo.files[PATH] = small_checkpoint()
    fetch_sources(sources.values())
    fetch_sources(sources.values())
    assert [line for line in zoo.asked if line == f"GET {PATH}"] == [f"GET {PATH}"] * 2, "once for each command"
