"""Hostile .npz files: each is refused by name, before what it declares is allocated."""

import io
import resource
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from flamest.agent.extraction import npz
from flamest.agent.extraction.npz import read_npz
from flamest.base.errors import DataError

X = np.eye(4, 6, dtype=np.float32)
Y = np.array(["a", "a", "b", "b"])


def array(header, data=b"", *, version=1, length=None):
    """Bytes of a .npy file with any header."""
    text = header.encode("latin-1")
    size = struct.pack("<H" if version == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes((version, 0)) + size + text + data


def plain(values):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, values, allow_pickle=True)
    return buffer.getvalue()


def declared(descr="'<f4'", order="False", shape="(4, 6)", extra=""):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, {extra}}}"


def written(path, *members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def patched(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path


HEADERS = {
    "negative": declared(shape="(-4, -6)"),
    "beyond 64 bits": declared(shape=f"({2**63}, 6)"),
    "product beyond 64 bits": declared(shape=f"({2**40}, {2**40})"),
    "bool": declared(shape="(True, 6)"),
    "float": declared(shape="(4.0, 6)"),
    "no tuple": declared(shape="24"),
    "expression": declared(shape="(2+2, 6)"),
    "nested": declared(shape="(" * 4000 + ")" * 4000),
    "minus signs": declared(shape="(" + "-" * 9000 + "4, 6)"),
    "call": declared(shape="(__import__('os').getpid(), 6)"),
    "structured": declared(descr="[('a', '<f4'), ('b', '<f4')]"),
    "objects": declared(descr="'|O'"),
    "unknown type": declared(descr="'<f3'"),
    "complex": declared(descr="'<c8'"),
    "dates": declared(descr="'<M8[s]'"),
    "no width": declared(descr="'<U0'"),
    "order no bool": declared(order="1"),
    "unknown key": declared(extra="'more': 1"),
    "no rows": declared(shape="(0, 6)"),
    "ten to the twelfth empty rows": declared(shape="(1000000000000, 0)"),
    "one dimension": declared(shape="(24,)"),
    "many dimensions": declared(shape="(" + "1," * 30 + ")"),
    "no header": "",
    "text": "hello",
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_declares_no_plain_array_is_refused(tmp_path, header):
    path = written(tmp_path / "f.npz", ("x.npy", array(HEADERS[header], X.tobytes())), ("y.npy", plain(Y)))
    with pytest.raises(DataError):
        read_npz(path, "n")


MEMBERS = {
    "long header": ("x.npy", array("", length=10_001)),
    "header of 4 GB": ("x.npy", array("", version=2, length=2**32 - 1)),
    "header cut": ("x.npy", array(declared())[:30]),
    "not an array": ("x.npy", b"PK\x03\x04"),
    "empty": ("x.npy", b""),
    "version 9": ("x.npy", b"\x93NUMPY\x09\x00" + array(declared(), X.tobytes())[8:]),
    "cut short": ("x.npy", array(declared(), X.tobytes()[:-4])),
    "too long": ("x.npy", array(declared(), X.tobytes() + b"1234")),
    "other folder": ("../x.npy", plain(X)),
    "absolute": ("/x.npy", plain(X)),
    "no ending": ("x", plain(X)),
}


@pytest.mark.parametrize("member", MEMBERS)
def test_a_damaged_member_is_refused(tmp_path, member):
    with pytest.raises(DataError):
        read_npz(written(tmp_path / "f.npz", MEMBERS[member], ("y.npy", plain(Y))), "n")
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]


def test_an_array_that_is_there_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = written(tmp_path / "f.npz", ("x.npy", plain(X)), ("x.npy", plain(X)), ("y.npy", plain(Y)))
    with pytest.raises(DataError, match="twice"):
        read_npz(path, "n")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_numpy_does_not_write_is_refused(tmp_path, method):
    path = written(tmp_path / "f.npz", ("x.npy", plain(X)), ("y.npy", plain(Y)), compression=method)
    with pytest.raises(DataError, match="method"):
        read_npz(path, "n")


def test_an_encrypted_array_is_refused(tmp_path):
    path = written(tmp_path / "f.npz", ("x.npy", plain(X)), ("y.npy", plain(Y)))
    data = bytearray(path.read_bytes())
    for start in (data.index(b"PK\x03\x04") + 6, data.index(b"PK\x01\x02") + 8):
        data[start] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="encrypted"):
        read_npz(path, "n")


def test_a_changed_byte_is_found_by_the_checksum(tmp_path):
    path = written(tmp_path / "f.npz", ("x.npy", plain(X)), ("y.npy", plain(Y)))
    with pytest.raises(DataError):
        read_npz(patched(path, X.tobytes(), X.tobytes()[::-1]), "n")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = written(tmp_path / "f.npz", ("x.npy", plain(X)), ("y.npy", plain(Y)))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError):
        read_npz(path, "n")


def test_a_directory_that_claims_gigabytes_is_not_read(tmp_path):
    path = written(tmp_path / "f.npz", ("x.npy", plain(X)), ("y.npy", plain(Y)))
    data = bytearray(path.read_bytes())
    end = data.index(b"PK\x05\x06")
    data[end:end] = b"\0" * (3 << 20)
    end += 3 << 20
    data[end + 12 : end + 16] = struct.pack("<I", 3 << 20)
    path.write_bytes(data)
    with pytest.raises(DataError, match="directory takes"):
        read_npz(path, "n")


TEXTS = {
    "control": np.array(["a\x1b[2J", "a", "b", "b"]),
    "line": np.array(["a\nb", "a", "b", "b"]),
    "zero": np.array(["a\0b", "a", "b", "b"]),
    "surrogate": np.array(["a", "a", "b", "\ud800"]),
    "no character": np.array([0x61, 0x61, 0x62, 0x110000], np.uint32).view("<U1"),
    "big-endian surrogate": np.array([0x61, 0x61, 0x62, 0xD800], ">u4").view(">U1"),
    "bytes": np.array([b"a", b"a", b"b", b"\xff"]),
    "huge width": np.array(["a", "a", "b", "b" * 5000]),
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["y", "group", "clip"])
def test_names_with_unusable_characters_are_refused(tmp_path, text, name):
    np.savez(tmp_path / "f.npz", **{"x": X, "y": Y, name: TEXTS[text]})
    with pytest.raises(DataError, match=name):
        read_npz(tmp_path / "f.npz", "n")


HONEST = {
    "Fortran order": np.asfortranarray(X),
    "big-endian": X.astype(">f4"),
    "double": X.astype(np.float64),
    "half": X.astype(np.float16),
    "a column": X[:, :1],
}


@pytest.mark.parametrize("values", HONEST)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_layout_of_honest_embeddings_is_read(tmp_path, values, save):
    save(tmp_path / "f.npz", x=HONEST[values], y=Y.astype(">U1"), other=np.zeros(3, object))
    found = read_npz(tmp_path / "f.npz", "n")
    assert found.x.tolist() == HONEST[values].astype(np.float32).tolist()
    assert [row.clip.label for _, row in found] == ["a", "a", "b", "b"]


def test_rows_and_widths_beyond_the_limits_are_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "f.npz", x=X, y=Y)
    for limit, value in (("MAX_ROWS", 3), ("MAX_WIDTH", 5), ("MAX_MEMORY", 111)):
        with monkeypatch.context() as patch:
            patch.setattr(npz, limit, value)
            with pytest.raises(DataError) as caught:
                read_npz(tmp_path / "f.npz", "n")
        assert caught.value.code == "too_large"
    assert len(read_npz(tmp_path / "f.npz", "n")) == 4


def zeros(path, header, size, name="x.npy", extra=()):
    """A member of ``size`` zero bytes behind ``header``, compressed a thousand times."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for other, data in extra:
            archive.writestr(other, data)
        with archive.open(name, "w", force_zip64=True) as member:
            member.write(array(header))
            for _ in range(size >> 20):
                member.write(bytes(1 << 20))
    return path


READ = """
import resource, sys
from pathlib import Path
from flamest.agent.extraction.npz import read_npz
from flamest.base.errors import DataError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    found = read_npz(Path(sys.argv[1]), "n")
    print("read", len(found), end=" ")
except DataError as error:
    print(error.code, end=" ")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def limited():
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))


@pytest.mark.parametrize("where", ["x", "y", "an array that nobody asks for"])
def test_a_small_file_of_huge_arrays_takes_no_memory(tmp_path, where):
    """1.5 GB in 1.5 MB, and x declares 9 GB. Memory is measured in a process of its own, MB."""
    rows = 1 << 18
    size = rows * 1500 * 4
    names = plain(np.full(rows, "a"))
    if where == "x":
        path = zeros(tmp_path / "f.npz", declared(shape=f"({rows * 6}, 1500)"), size, extra=[("y.npy", names)])
    elif where == "y":
        path = zeros(tmp_path / "f.npz", declared("'<U5000'", shape="(4,)"), size, "y.npy", [("x.npy", plain(X))])
    else:
        header = declared(shape=f"({rows}, 1500)")
        path = zeros(tmp_path / "f.npz", header, size, "z.npy", [("x.npy", plain(X)), ("y.npy", plain(Y))])
    assert path.stat().st_size < 8_300_000
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, preexec_fn=limited)
    assert done.returncode == 0, done.stderr
    outcome, _, memory = done.stdout.strip().rpartition(" ")
    assert outcome == ("read 4" if where.startswith("an array") else "bad_data")
    assert int(memory) < 100
    assert time.monotonic() - began < 30
