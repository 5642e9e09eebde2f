import json
import struct

import numpy as np
import pytest
from flamest.base.errors import DataError, StorageError
from flamest.base.files import sha256_bytes
from flamest.fedproto.tensor_file import TensorFile, read_tensors, write_tensors

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([np.pi]), "c": np.zeros((0, 4))}


@pytest.fixture
def path(tmp_path):
    write_tensors(tmp_path / "x", TensorFile({"round": 3, "of": "r"}, ARRAYS))
    return tmp_path / "x"


def test_everything_comes_back_to_the_bit(path):
    found = read_tensors(path)
    assert found.metadata == {"round": 3, "of": "r"}
    assert list(found.tensors) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found.tensors[name].dtype == array.dtype
        assert found.tensors[name].shape == array.shape
        assert (found.tensors[name] == array).all()
        assert found.tensors[name].flags.writeable


def test_the_same_content_gives_the_same_bytes(path, tmp_path):
    write_tensors(tmp_path / "y", TensorFile({"round": 3, "of": "r"}, ARRAYS))
    assert path.read_bytes() == (tmp_path / "y").read_bytes()
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("length", [0, 7, 8, 60, -1])
def test_a_file_that_is_cut_is_damaged(path, length):
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match="is damaged") as refused:
        read_tensors(path)
    assert refused.value.code == "damaged"


def test_a_changed_value_is_found(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="not the ones written"):
        read_tensors(path)


@pytest.mark.parametrize(
    "arrays",
    [
        [["a", "<f8", [9]]],
        [["a", "|O", [1]]],
        [["a", "<f8", [-1]]],
        [["a", "<f8", [-1, -1]]],
        [["a", "<f8", [1 << 62, 4]]],
        [],
        [["a", "<f4", [1]]],
    ],
)
def test_a_header_that_does_not_fit_the_payload_is_damaged(path, arrays):
    payload = b"\0" * 8
    header = json.dumps({"told": {}, "arrays": arrays, "sha256": sha256_bytes(payload)}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + payload)
    with pytest.raises(DataError, match="is damaged"):
        read_tensors(path)


def test_an_absent_file_is_not_a_damaged_one(tmp_path):
    with pytest.raises(StorageError):
        read_tensors(tmp_path / "nothing")
