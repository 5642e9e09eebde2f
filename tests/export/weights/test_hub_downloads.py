"""Weights from a hub on loopback that has the published captioner's files, and from one that answers wrongly."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flamest.export.weights.loading import open_blip
from flamest.export.weights.source import parse_source
from flamest_tests_published_blip import (
    CONFIG,
    CONFIG_SHA256,
    PREPROCESSOR,
    PREPROCESSOR_SHA256,
    REPOSITORY,
    REVISION,
    as_file,
    small_files,
)  # fmt: skip
from flamest_tests_web_server import COMMIT, cut_after, endless_redirect, login_page, serving, status

BIN = "pytorch_model.bin"
SMALL = {"config.json": b"{}", "vocab.txt": b"a", "preprocessor_config.json": b"{}", BIN: bytes(range(250)) * 40}
CHILD = """
import json, os, sys
from flamest.base.errors import FlamestError
from flamest.export.weights.hub import cached_folder, fetch_folder
from flamest.export.weights.source import parse_source
for name in sys.argv[1:]:
    said = {"name": name}
    try:
        folder, revision = fetch_folder(parse_source("blip", name), to_bring="FILES")
        said |= {"files": sorted(os.listdir(folder)), "revision": revision}
    except FlamestError as error:
        said |= {"kind": type(error).__name__, "code": error.code, "message": error.message, "fix": error.fix}
    repository, _, revision = name.partition("@")
    found = cached_folder(repository, revision or None)
    said["cached"] = None if found is None else sorted(os.listdir(found))
    print(json.dumps(said))
"""
# Repository -> what goes wrong, by a part of the path. A hub that is behind a portal is asked for first.
FAULTS = {
    "portal/of-login": {"portal/of-login": login_page},
    "files/behind-portal": {"files/behind-portal/cdn": login_page},
    "cut/always": {"cut/always/cdn": cut_after(SMALL[BIN], 0)},
    "cut/twice": {"cut/twice/cdn": cut_after(SMALL[BIN], 3000, times=2)},
    "changed/bytes": {"changed/bytes/cdn": lambda answer: answer.send_file(bytes(len(SMALL[BIN])))},
    "short/file": {"short/file/cdn": lambda answer: answer.send_file(SMALL[BIN][:5000])},
    "endless/redirect": {"endless/redirect/cdn": endless_redirect},
    "no/login": {"no/login": status(401)},
    "not/allowed": {"not/allowed": status(403)},
    "not/there": {"not/there": status(404)},
    "too/many": {"too/many": status(429)},
    "server/fault": {"server/fault": status(500)},
}


def fetch(web, home: Path, *names: str, **environment: str) -> list[dict[str, Any]]:
    """Fetch repositories in a process of its own, as the library reads its settings when it is imported."""
    variables = {"HF_ENDPOINT": web.address, "HF_HOME": str(home), "no_proxy": "*", **environment}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *names],
        capture_output=True, text=True, check=True, env={**os.environ, **variables}, timeout=300,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def fetched(tmp_path_factory) -> dict[str, Any]:
    """Answers about each faulty repository, and when it is fetched again after the fault has passed."""
    home = tmp_path_factory.mktemp("faults")
    with serving() as web:
        web.hub = {name: dict(SMALL) for name in FAULTS}
        web.faults = {part: fault for faults in FAULTS.values() for part, fault in faults.items()}
        first = {said["name"]: said for said in fetch(web, home, *FAULTS)}
        left = [path.name for path in home.rglob("*") if path.name.endswith((".incomplete", ".part", ".partial"))]
        web.faults.clear()
        again = {said["name"]: said for said in fetch(web, home, *FAULTS)}
    return {"first": first, "again": again, "left": left}


@pytest.mark.parametrize(
    ("name", "reason", "fix"),
    [
        ("portal/of-login", "what answered is a web page: a proxy, or a network that wants a login", "with a browser"),
        ("files/behind-portal", "the connection ended before the file did", "run the command again"),
        ("cut/always", "the connection ended before the file did", "run the command again"),
        ("short/file", "the connection ended before the file did", "run the command again"),
        ("endless/redirect", "the redirects do not end", "check the proxy"),
        ("no/login", "it needs a login, or does not exist (HTTP status 401)", "HF_TOKEN"),
        ("not/allowed", "it is refused (HTTP status 403)", "HF_TOKEN"),
        ("not/there", "it is not there (HTTP status 404)", "check the name and the revision"),
        ("too/many", "too many requests from this network (HTTP status 429)", "wait some minutes"),
        ("server/fault", "the server has a fault (HTTP status 500)", "later"),
    ],
)
def test_a_failed_fetch_says_why_and_what_to_do(fetched, name, reason, fix):
    said = fetched["first"][name]
    assert said["kind"] == "UnreachableError", said
    assert reason in said["message"]
    assert fix in said["fix"]
    assert said["fix"].endswith("bring it here, then type: flamest-export --backend onnx --blip "
                                f"./{name.partition('/')[2]} --out DIR")  # fmt: skip
    assert "FILES" in said["fix"]


def test_a_file_of_another_content_is_removed_from_the_cache(fetched):
    """Of the right size, so that the hub's library keeps it."""
    said = fetched["first"]["changed/bytes"]
    assert (said["kind"], said["code"]) == ("UnreachableError", "bad_download")
    assert "pytorch_model.bin of 'changed/bytes' is not the file that the hub has" in said["message"]
    assert "run the command again" in said["fix"]
    assert BIN not in said["cached"]


def test_an_interrupted_fetch_continues_where_it_ended(fetched):
    assert BIN in fetched["first"]["cut/twice"]["files"]


def test_after_a_failure_the_same_command_succeeds(fetched):
    """No fault leaves anything behind that the next try stumbles over."""
    assert fetched["left"] == []
    for name, said in fetched["again"].items():
        assert said.get("files") == sorted(SMALL), (name, said)
        assert said["cached"] == sorted(SMALL), "an export's own files are found again, though the snapshot has more"


def test_the_published_configuration_is_the_published_file():
    assert hashlib.sha256(as_file(CONFIG)).hexdigest() == CONFIG_SHA256
    assert hashlib.sha256(as_file(PREPROCESSOR)).hexdigest() == PREPROCESSOR_SHA256


def test_the_published_layout_is_fetched_without_what_is_not_needed(tmp_path, tiny_blip):
    """pytorch_model.bin and no safetensors: one look at the repository, and TensorFlow's weights stay there."""
    files = small_files(tiny_blip.model)
    with serving() as web:
        web.hub, web.commits = {REPOSITORY: files}, {REPOSITORY: REVISION}
        (said,) = fetch(web, tmp_path, REPOSITORY)
        asked = list(web.asked)
        (again,) = fetch(web, tmp_path, REPOSITORY, HF_HUB_OFFLINE="1")
    wanted = {"config.json", "preprocessor_config.json", BIN, "vocab.txt"}
    assert set(said["files"]) == wanted
    assert said["revision"] == f"commit {REVISION}"
    assert sum("/tree/" in line for line in asked) == 1
    assert not any("tf_model" in line for line in asked)
    assert set(again["files"]) == set(again["cached"]) == wanted, "offline, from the cache"
    (folder,) = tmp_path.glob("hub/models--*/snapshots/*")
    loaded = open_blip(parse_source("blip", str(folder)))
    assert loaded.source.weights_sha256 == tiny_blip.source.weights_sha256
    text = loaded.model.config.text_config
    assert (text.num_attention_heads, text.bos_token_id, text.sep_token_id) == (12, 30522, 102)


def test_offline_and_not_in_the_cache_names_the_setting(tmp_path):
    with serving() as web:
        (said,) = fetch(web, tmp_path, REPOSITORY, HF_HUB_OFFLINE="1")
        assert web.asked == []
    assert "HF_HUB_OFFLINE forbids the network" in said["message"]
    assert said["fix"].startswith("unset HF_HUB_OFFLINE; or where there is network, download config.json"[:40])


def test_without_a_server_the_network_is_named(tmp_path):
    with serving() as web:
        pass
    (said,) = fetch(web, tmp_path, "some/model")
    assert "the server cannot be reached" in said["message"]
    assert "https_proxy" in said["fix"]


def test_a_repository_of_other_formats_says_so(tmp_path):
    with serving() as web:
        web.hub = {"only/tensorflow": {"config.json": b"{}", "tf_model.h5": b"x"}}
        (said,) = fetch(web, tmp_path, "only/tensorflow")
    assert (said["kind"], said["code"]) == ("DataError", "no_weights")
    assert "expected model.safetensors or pytorch_model.bin" in said["message"]


def test_safetensors_are_preferred_where_the_hub_has_both(tmp_path):
    with serving() as web:
        web.hub = {"both/kinds": {**SMALL, "model.safetensors": b"s" * 100}}
        (said,) = fetch(web, tmp_path, "both/kinds")
    assert "model.safetensors" in said["files"]
    assert BIN not in said["files"]


def test_a_full_disk_is_found_before_the_download(tmp_path, monkeypatch):
    import shutil

    from flamest.base.errors import StorageError
    from flamest.export.weights.hub import fetch_folder
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 0, 9 * 10**8))
    with pytest.raises(StorageError, match=r"has 0\.99 GB, and 0\.90 GB are free") as refused:
        fetch_folder(parse_source("blip", REPOSITORY), to_bring="FILES")
    assert (refused.value.code, "HF_HOME" in refused.value.fix) == ("disk_full", True)


def test_a_first_export_from_the_hub_gives_a_bundle(tmp_path, tiny_blip):
    """The whole command, as typed on a machine with network: repository in the published layout, small weights."""
    words = ["--backend", "onnx", "--extractor", "blip", "--blip", "someone/captioner", "--slow", "random:tiny"]
    words += ["--threads", "1", "--json", "--out", str(tmp_path / "bundle")]
    command = [sys.executable, "-m", "flamest.export", *words]
    with serving() as web:
        web.hub = {"someone/captioner": small_files(tiny_blip.model)}
        variables = {"HF_ENDPOINT": web.address, "HF_HOME": str(tmp_path / "hf"), "no_proxy": "*"}
        environment = {**os.environ, **variables}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["captions_equal"]
    assert f"fetching 'someone/captioner' from {web.address} to {tmp_path}" in done.stderr
    source = json.loads((tmp_path / "bundle" / "bundle.json").read_text())["sources"]["blip"]
    assert source["revision"].startswith(f"commit {COMMIT}, file SHA-256 ")
    assert source["weights_sha256"] == tiny_blip.source.weights_sha256
