"""Hashes of weights files: a file with another hash than expected is refused before it is parsed."""

import hashlib
import os
import pickle
import zipfile
from dataclasses import replace

import pytest
import torch
from flamest.base.errors import DataError, FlamestError, UsageError
from flamest.export.weights import source as sources
from flamest.export.weights import video
from flamest.export.weights.checkpoints import load_checkpoint
from flamest.export.weights.source import parse_sha256, parse_source
from safetensors.torch import save_file

TENSORS = {"a": torch.ones(3)}
OTHER = "0" * 64


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(params=["safetensors", "pth"])
def file(request, tmp_path):
    path = tmp_path / f"w.{request.param}"
    save_file(TENSORS, path) if request.param == "safetensors" else torch.save(TENSORS, path)
    return path


def test_the_hash_is_that_of_the_file_that_was_parsed(file):
    found = load_checkpoint(file, sha256=digest(file))
    assert found.sha256 == digest(file)
    assert found.tensors["a"].tolist() == [1, 1, 1]


def test_a_file_with_another_hash_is_never_parsed(tmp_path):
    trap = tmp_path / "trap"

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(trap),)

    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(DataError) as caught:
        load_checkpoint(path, sha256=OTHER)
    assert caught.value.code == "other_weights"
    with pytest.raises(DataError, match="weights_only") as caught:
        load_checkpoint(path)
    assert "safetensors" in caught.value.fix
    assert not trap.exists()


def test_a_fetched_file_with_another_hash_than_published_is_refused(monkeypatch, tmp_path):
    """A whole network, of every name and shape, with other values: what a zoo in wrong hands would serve."""

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    tensors = video.VIDEO_WEIGHTS["resnet3d"].network.full()[0].state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(
        {name: torch.ones(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()},
        tmp_path / "hub" / "checkpoints" / "r3d_18-b3b3357e.pth",
    )
    source = parse_source("resnet3d", "r3d_18")
    with pytest.raises(DataError) as caught:
        video.load_video(video.VIDEO_WEIGHTS["resnet3d"], source)
    assert caught.value.code == "other_weights"
    assert "b3b3357e" in caught.value.message


def test_a_hash_that_was_asked_for_holds_for_every_source(monkeypatch, tmp_path):
    monkeypatch.setattr(video, "zoo_cache", lambda: tmp_path)
    file = tmp_path / "SLOW_8x8_R50.pyth"
    torch.save(TENSORS, file)
    for text in ("slow_r50", str(file)):
        asked = replace(parse_source("slow", text), sha256=OTHER)
        with pytest.raises(DataError) as caught:
            video.load_video(video.VIDEO_WEIGHTS["slow"], asked)
        assert caught.value.code == "other_weights"


def test_only_a_hash_for_a_known_network_is_taken():
    assert parse_sha256([f"slow={OTHER}"]) == {"slow": OTHER}
    for bad in (["slow"], [OTHER], [f"other={OTHER}"], ["slow=abc"], [f"slow={OTHER.upper()}Z"], [f"slow={OTHER}"] * 2):
        with pytest.raises(UsageError):
            parse_sha256(bad)


def test_a_release_pins_its_own_revision_and_file_only(tmp_path):
    pinned = sources.BY_SOURCE["Salesforce/blip-image-captioning-base"]
    for text, name, expected in (
        (pinned.source, pinned.file, pinned.sha256),
        (f"{pinned.source}@{pinned.revision}", pinned.file, pinned.sha256),
        (f"{pinned.source}@main", pinned.file, ""),
        (pinned.source, "model.safetensors", ""),
    ):
        assert parse_source("blip", text).expected_sha256(tmp_path / name) == expected


def test_a_compressed_archive_of_weights_is_refused(tmp_path):
    torch.save(TENSORS, tmp_path / "plain.pth")
    path = tmp_path / "packed.pth"
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(DataError, match="compressed"):
        load_checkpoint(path)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pyth", "bin"])
@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04", b"\xff" * 8, b"\x80\x02" + b"(" * 9000, bytes(1000)])
def test_damaged_weights_end_by_name(tmp_path, suffix, content):
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(FlamestError) as caught:
        load_checkpoint(path)
    assert caught.value.exit_code == 65
