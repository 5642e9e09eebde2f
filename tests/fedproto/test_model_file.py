import dataclasses
import errno
import io
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from flamest.base.errors import DataError, StorageError
from flamest.fedproto.calibration import Calibration
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.model_file import ModelFile, encode_model, read_model, write_model

SPEC = HeadSpec(inputs=3, outputs=2, hidden=(4,))
MODEL = ModelFile(
    head=SPEC,
    params=initial_params(SPEC, seed=5),
    labels=("gehen", "stürzen"),
    fingerprint="abc",
    run="r",
    round=7,
    metadata={"site": "x", "accuracy": "0.5"},
)
CALIBRATED = dataclasses.replace(MODEL, calibration=Calibration(1.5, (0.25, -0.5), 0.9, 3.0, 40, (1,), 3))


@pytest.mark.parametrize("model", [MODEL, CALIBRATED])
def test_every_field_comes_back(tmp_path, model):
    write_model(tmp_path / "m.safetensors", model)
    found = read_model(tmp_path / "m.safetensors")
    for field in dataclasses.fields(ModelFile):
        if field.name == "params":
            assert params_sha256(found.params) == params_sha256(model.params)
        else:
            assert getattr(found, field.name) == getattr(model, field.name)


def test_a_file_without_a_calibration_does_not_name_one():
    assert b"flamest.calibration" in encode_model(CALIBRATED)
    assert b"calibration" not in encode_model(MODEL)


def test_a_calibration_of_other_classes_is_refused(tmp_path):
    other = dataclasses.replace(MODEL, calibration=Calibration(1.5, (0.0, 0.0, 0.0)))
    with pytest.raises(DataError, match=r"calibration\.thresholds: 3, the head has 2 outputs"):
        write_model(tmp_path / "m.safetensors", other)
    text = encode_model(CALIBRATED)
    (tmp_path / "m.safetensors").write_bytes(text.replace(b"1.5", b"0.0"))
    with pytest.raises(DataError, match=r"calibration\.temperature"):
        read_model(tmp_path / "m.safetensors")


def test_the_safetensors_library_reads_it(tmp_path):
    from safetensors import safe_open

    write_model(tmp_path / "m.safetensors", MODEL)
    with safe_open(tmp_path / "m.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["flamest.labels"]) == ["gehen", "stürzen"]
        assert set(file.keys()) == set(MODEL.params)
        for name, tensor in MODEL.params.items():
            np.testing.assert_array_equal(file.get_tensor(name), tensor)


def test_the_same_model_gives_the_same_bytes_in_every_process():
    code = """
import hashlib
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.model_file import ModelFile, encode_model
spec = HeadSpec(inputs=3, outputs=2, hidden=(4,))
model = ModelFile(spec, initial_params(spec, 5), ("gehen", "stürzen"), "abc", "r", 7, {"accuracy": "0.5", "site": "x"})
print(hashlib.sha256(encode_model(model)).hexdigest())
"""
    import hashlib

    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == hashlib.sha256(encode_model(MODEL)).hexdigest()


def read_bytes(folder, content: bytes) -> ModelFile:
    (folder / "m").write_bytes(content)
    return read_model(folder / "m")


def test_every_truncation_is_refused(tmp_path):
    content = encode_model(MODEL)
    for size in range(len(content)):
        with pytest.raises(DataError) as refused:
            read_bytes(tmp_path, content[:size])
        assert refused.value.code == "bad_model"


def rewritten(change) -> bytes:
    content = encode_model(MODEL)
    size = struct.unpack_from("<Q", content)[0]
    header = json.loads(content[8 : 8 + size])
    payload = bytearray(content[8 + size :])
    change(header, payload)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(payload)


def metadata(key, value):
    return lambda header, payload: header["__metadata__"].__setitem__(f"flamest.{key}", json.dumps(value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, p: h.pop("__metadata__"), "no FLAMeST metadata"),
        (lambda h, p: h["__metadata__"].pop("flamest.run"), "no metadata 'flamest.run'"),
        (lambda h, p: h.__setitem__("9.bias", h.pop("0.bias")), "tensors .*9.bias.*, expected .*0.bias"),
        (lambda h, p: h["0.bias"].update(dtype="I32"), "0.bias is I32 .*expected F32"),
        (lambda h, p: h["0.bias"].update(shape=[2, 2]), "expected F32 \\[4\\]"),
        (lambda h, p: h.pop("0.bias"), "tensors .*expected .*0.bias"),
        (lambda h, p: h.__setitem__("9.bias", h["0.bias"]), "tensors .*9.bias"),
        (lambda h, p: h["0.bias"].update(dtype="F64"), "0.bias is F64"),
        (lambda h, p: h["0.bias"].update(data_offsets=[0, 16]), "not a whole safetensors file"),
        (lambda h, p: p.extend(b"more"), "not a whole safetensors file"),
        (lambda h, p: p.__setitem__(slice(0, 4), b"\x00\x00\xc0\x7f"), "holds NaN"),
        (metadata("labels", ["one"]), "1 labels, its head has 2 outputs"),
        (metadata("labels", [1, 2]), "flamest.labels"),
        (metadata("format", 2), "format 2, this version reads 1"),
        (metadata("head", {"inputs": 3, "outputs": 2, "kind": "transformer"}), "flamest.head"),
        (metadata("round", "seven"), "flamest.round"),
    ],
)
def test_a_broken_rule_is_named(tmp_path, change, message):
    with pytest.raises(DataError, match=message) as refused:
        read_bytes(tmp_path, rewritten(change))
    assert refused.value.code == "bad_model"
    assert refused.value.message.startswith(f"{tmp_path / 'm'}: ")


def test_an_unchanged_rewritten_file_is_read(tmp_path):
    assert read_bytes(tmp_path, rewritten(lambda h, p: None)).round == 7


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a zip file, as torch writes",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 7) + b'{"\xf3":1}',  # not UTF-8
        struct.pack("<Q", 8 << 20) + b"{" + bytes(8 << 20),  # a header larger than any model's
        struct.pack("<Q", 100_000) + b"[" * 100_000,
    ],
)
def test_another_kind_of_file_is_refused(tmp_path, content):
    with pytest.raises(DataError) as refused:
        read_bytes(tmp_path, content)
    assert refused.value.code == "bad_model"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StorageError, match="nowhere"):
        read_model(tmp_path / "nowhere.safetensors")


def test_a_model_that_does_not_fit_its_head_is_not_written(tmp_path):
    with pytest.raises(DataError, match="3 labels"):
        write_model(tmp_path / "m", dataclasses.replace(MODEL, labels=("a", "b", "c")))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_error_while_reading_is_a_storage_error(tmp_path, monkeypatch):
    write_model(tmp_path / "m.safetensors", MODEL)

    class Broken(io.FileIO):
        def read(self, size=-1):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("flamest.base.files.open_regular", lambda path, **_: Broken(path))
    with pytest.raises(StorageError, match="Input/output error"):
        read_model(tmp_path / "m.safetensors")


def test_a_model_in_memory_outlives_its_file(tmp_path):
    path = tmp_path / "m.safetensors"
    write_model(path, MODEL)
    found = read_model(path)
    path.write_bytes(b"")  # with the file mapped into memory, the next line would end the process
    assert params_sha256(found.params) == params_sha256(MODEL.params)
