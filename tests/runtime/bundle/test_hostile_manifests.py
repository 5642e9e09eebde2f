"""Manifests that no export writes: each is refused within seconds, with a code and its exit code."""

import json
import os
import shutil
import socket
import time

import pytest
from flamest.base.errors import FlamestError
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.bundle.opening import open_bundle, open_manifest

DEEP = 200_000
CODES = {"bad_data": 65, "bundle_tampered": 65, "graph_refused": 65}


@pytest.fixture
def bundle(toy_bundle, tmp_path):
    return shutil.copytree(toy_bundle, tmp_path / "bundle")


def refused(bundle):
    started = time.monotonic()
    with pytest.raises(FlamestError) as caught:
        open_bundle(bundle)
    assert time.monotonic() - started < 10
    assert caught.value.exit_code == CODES[caught.value.code], caught.value.message
    assert caught.value.fix
    assert len(caught.value.message) < 2000
    assert caught.value.message.isprintable()
    return caught.value


def changed(manifest, path, value):
    """The manifest's JSON with ``value`` at ``path``, a list of keys."""
    *parents, last = path
    inner = manifest
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return json.dumps(manifest).encode()


BYTES = {
    "empty": lambda data: b"",
    "not UTF-8": lambda data: data.replace(b"toy", b"t\xff\xfe", 1) if b"toy" in data else b"\xff" + data,
    "not UTF-8 in a name": lambda data: data.replace(b'"schema"', b'"\xffschema"', 1),
    "a surrogate alone": lambda data: data.replace(b'"created": "', b'"created": "\\ud800', 1),
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "nested lists": lambda data: b"[" * DEEP,
    "nested objects": lambda data: b'{"a":' * DEEP,
    "nested in an unknown field": lambda data: data.replace(b"{", b'{"x": ' + b"[" * DEEP + b"]" * DEEP + b",", 1),
    "nested in a graph": lambda data: data.replace(b'"axes": {', b'"axes": {"b": ' + b"[" * DEEP, 1),
    "a name twice": lambda data: data.replace(b'"schema": 3', b'"schema": 3, "schema": 3', 1),
    "a file twice": lambda data: data.replace(b'"files": {', b'"files": {"cnn.onnx": {"sha256": "' + b"0" * 64
                                              + b'", "bytes": 1},', 1),
    "a schema of many digits": lambda data: data.replace(b'"schema": 3', b'"schema": ' + b"9" * 100_000, 1),
    "a schema of 2^63": lambda data: data.replace(b'"schema": 3', b'"schema": 9223372036854775808', 1),
    "NaN": lambda data: data.replace(b'"extraction_seed": ', b'"extraction_seed": NaN, "x": ', 1),
    "a number beyond all": lambda data: data.replace(b'"extraction_seed": ', b'"extraction_seed": 1e999, "x": ', 1),
    "longer than a manifest": lambda data: data + b" " * (17 << 20),
    "a list": lambda data: b"[]",
    "NUL bytes": lambda data: bytes(1000),
}  # fmt: skip


@pytest.mark.parametrize("how", BYTES)
def test_bytes_that_are_no_manifest_are_refused(bundle, how):
    data = (bundle / "bundle.json").read_bytes()
    harmed = BYTES[how](data)
    assert harmed != data
    (bundle / "bundle.json").write_bytes(harmed)
    refused(bundle)


HUGE = 1 << 63
VALUES = [
    (["extraction_seed"], HUGE),
    (["extraction_seed"], -1),
    (["keyframes", "candidates"], 1 << 40),
    (["keyframes", "count"], HUGE),
    (["keyframes", "preprocessing", "size"], 1_000_000),
    (["keyframes", "preprocessing", "size"], 0),
    (["keyframes", "preprocessing", "mean"], [1e300, 0, 0]),
    (["keyframes", "preprocessing", "resized"], [HUGE, 1]),
    (["keyframes", "feature_width"], HUGE),
    (["vlm", "text", "layers"], 1_000_000_000),
    (["vlm", "text", "heads"], HUGE),
    (["vlm", "text", "head_dim"], 1 << 40),
    (["vlm", "caption", "max_new_tokens"], 1_000_000_000),
    (["vlm", "caption", "start_id"], -5),
    (["vlm", "captioned_frames"], 1 << 33),
    (["vlm", "width"], HUGE),
    (["vlm", "preprocessing", "size"], 1 << 20),
    (["cnn", "frames"], 1 << 33),
    (["cnn", "width"], -1),
    (["graphs", "cnn", "inputs", 0, "shape"], [HUGE] * 5),
    (["graphs", "cnn", "inputs", 0, "shape"], [1] * 10_000),
    (["graphs", "cnn", "opset"], HUGE),
    (["graphs", "cnn", "file"], "../cnn.onnx"),
    (["graphs", "cnn", "file"], "cnn.onnx\n"),
    (["graphs"], {f"graph{number}": {} for number in range(1000)}),
    (["files", "cnn.onnx", "bytes"], HUGE),
    (["files", "cnn.onnx", "bytes"], -1),
    (["files", "cnn.onnx", "bytes"], 0),
    (["files", "cnn.onnx", "sha256"], "x" * 64),
    (["files", "cnn.onnx", "sha256"], "A" * 64),
    (["created"], "x" * 1_000_000),
    (["extractor"], "\x1b]0;title\x07"),
    (["extractor"], "slow\n"),
    (["sources", "slow", "licence"], "\u202eCC0"),
    (["versions"], {"flamest": "\x9b2J"}),
    (["schema"], 3.5),
    (["schema"], None),
]


@pytest.mark.parametrize(("path", "value"), VALUES, ids=[f"{'.'.join(map(str, path))}-{n}" for n, (path, _)
                                                         in enumerate(VALUES)])  # fmt: skip
def test_values_that_no_export_writes_are_refused(bundle, path, value):
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    (bundle / "bundle.json").write_bytes(changed(manifest, path, value))
    refused(bundle)


@pytest.mark.parametrize(
    "name",
    [
        "a\nb",
        "a\0b",
        "../a",
        "/etc/passwd",
        "a/../b",
        "plans/",
        "~root",
        "-rf",
        "a b",
        "caf\u00e9",
        "\u202egnp.exe",
        "\ufeffcnn.onnx",
        "cnn.onnx\u200b",
        "a" * 300,
        "CON:",
        "a/b/c/d/e/f/g/h/i/j/../../x",
    ],
)
def test_names_that_mislead_are_refused(bundle, name):
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    entry = manifest["files"]["cnn.onnx"]
    (bundle / "bundle.json").write_bytes(changed(manifest, ["files"], {**manifest["files"], name: entry}))
    refused(bundle)


def test_a_manifest_of_very_many_files_is_refused_at_once(bundle):
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    entry = {"sha256": "0" * 64, "bytes": 1}
    files = {**manifest["files"], **{f"f{number}": entry for number in range(150_000)}}
    (bundle / "bundle.json").write_bytes(changed(manifest, ["files"], files))
    refused(bundle)


def test_frames_and_captions_are_bounded_in_all(bundle):
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    manifest["keyframes"]["candidates"] = 1024
    (bundle / "bundle.json").write_bytes(changed(manifest, ["keyframes", "preprocessing", "size"], 2048))
    assert "pixels in all" in refused(bundle).message


def replace_by(file, what):
    file.unlink()
    match what:
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                here = os.getcwd()
                os.chdir(file.parent)  # a socket's path is short
                try:
                    listener.bind(file.name)
                finally:
                    os.chdir(here)
        case "link to a device":
            file.symlink_to("/dev/zero")
        case "link to itself":
            file.symlink_to(file)


@pytest.mark.parametrize("what", ["folder", "pipe", "socket", "link to a device", "link to itself"])
@pytest.mark.parametrize("name", ["bundle.json", "bundle.sig", "cnn.onnx", "tokenizer.json"])
def test_no_kind_of_special_file_blocks_or_is_read(bundle, name, what):
    if name == "bundle.sig":
        (bundle / name).write_bytes(b"")
    replace_by(bundle / name, what)
    assert refused(bundle).code == "bundle_tampered"
    if name in ("bundle.json", "bundle.sig"):
        with pytest.raises(FlamestError):
            open_manifest(bundle)


@pytest.mark.parametrize("what", ["missing", "file", "pipe", "NUL", "long"])
def test_a_path_that_is_no_folder_is_no_bundle(tmp_path, what):
    path = tmp_path / "bundle"
    match what:
        case "file":
            path.write_bytes(b"{}")
        case "pipe":
            os.mkfifo(path)
        case "NUL":
            path = tmp_path / "a\0b"
        case "long":
            path = tmp_path / ("x" * 5000)
    with pytest.raises(FlamestError) as caught:
        open_bundle(path)
    assert (caught.value.code, caught.value.exit_code) == ("bad_data", 65)


def test_a_folder_of_very_many_folders_is_refused_at_once(bundle):
    for number in range(2000):
        (bundle / f"folder{number}").mkdir()
    refused(bundle)


def test_a_folder_inside_folders_without_end_is_refused(bundle):
    deep = bundle
    for _ in range(300):
        deep = deep / "folder"
        deep.mkdir()
    refused(bundle)


def test_a_sparse_file_is_refused_by_its_size(bundle):
    with (bundle / "cnn.onnx").open("r+b") as file:
        file.truncate(60 << 30)
    assert "expected at most" in refused(bundle).message


@pytest.mark.parametrize("name", ["cnn.onnx", "tokenizer.json", "LICENCES.txt"])
def test_a_sparse_file_as_large_as_its_manifest_says_is_refused(bundle, name):
    """Neither hashed for minutes nor copied into memory: 60 GB cost their writer nothing."""
    size = 6 << 30
    with (bundle / name).open("ab") as file:
        file.truncate(size)
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    manifest["files"] |= {each: {"sha256": "0" * 64, "bytes": size} for each in (name, "a.plan", "b.plan")}
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    assert "expected at most" in refused(bundle).message


@pytest.mark.parametrize("lacks", ["tokenizer.json", "cnn.onnx", "keyframes"])
def test_whoever_reads_a_manifest_can_rely_on_what_it_needs(bundle, lacks):
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    del manifest["graphs" if lacks == "keyframes" else "files"][lacks]
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    for read in (open_bundle, open_manifest, read_manifest):
        with pytest.raises(FlamestError) as caught:
            read(bundle)
        assert caught.value.exit_code == 65
