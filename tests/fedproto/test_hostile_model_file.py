"""Model files that no program of ours wrote: each one ends in a named error, at once and without its size in memory."""

import json
import os
import resource
import struct
import time

import pytest
from flamest.base.errors import DataError, FlamestError
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.model_file import ModelFile, encode_model, read_model, write_model

SPEC = HeadSpec(inputs=3, outputs=2, hidden=(4,))
GOOD = encode_model(ModelFile(SPEC, initial_params(SPEC, 0), ("x", "y"), "f", "r", 3))
MAX_GROWTH_KB = 200 << 10


def with_metadata(**changes) -> bytes:
    """The good file with other values in its metadata; text is put in as it is."""
    (size,) = struct.unpack_from("<Q", GOOD)
    header = json.loads(GOOD[8 : 8 + size])
    for key, value in changes.items():
        header["__metadata__"][f"flamest.{key}"] = value if isinstance(value, str) else json.dumps(value)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + GOOD[8 + size :]


def head(**changes):
    return {"inputs": 3, "outputs": 2, "hidden": [4], "kind": "mlp", **changes}


def with_header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


CASES = {
    "round 2^63": with_metadata(round=1 << 63),
    "round 2^64": with_metadata(round=1 << 64),
    "round -1": with_metadata(round=-1),
    "a round of 5,000 digits": with_metadata(round="9" * 5_000),
    "format 2^63": with_metadata(format=1 << 63),
    "format -1": with_metadata(format=-1),
    "a format of 100 kB": with_metadata(format="9" * 100_000),
    "widths that wrap at 2^64": with_metadata(head=head(inputs=1 << 32, hidden=[1 << 32])),
    "a negative width": with_metadata(head=head(hidden=[-4])),
    "a width of 0": with_metadata(head=head(inputs=0)),
    "2^62 inputs": with_metadata(head=head(inputs=1 << 62)),
    "20,000 layers": with_metadata(head=head(hidden=[1] * 20_000)),
    "300,000 layers": with_metadata(head=head(hidden=[1] * 300_000)),
    "a head of 17 TB": with_metadata(head=head(hidden=[65_536] * 16)),
    "a label twice": with_metadata(labels=["x", "x"]),
    "an empty label": with_metadata(labels=["x", ""]),
    "a label with an escape": with_metadata(labels=["x", "\x1b[2J"]),
    "100,000 labels": with_metadata(labels=[str(n) for n in range(100_000)]),
    "an empty fingerprint": with_metadata(fingerprint='""'),
    "a fingerprint of 100 kB": with_metadata(fingerprint=json.dumps("f" * 100_000)),
    "a run with a newline": with_metadata(run=json.dumps("r\nr")),
    "a head nested deep": with_metadata(head="[" * 100_000 + "]" * 100_000),
    "metadata nested deep": with_metadata(metadata='{"a":' * 50_000 + "1" + "}" * 50_000),
    "half a character": with_metadata(run='"\\ud800"'),
    "a header nested deep": with_header(b'{"__metadata__":' * 100_000),
    "a header that is not UTF-8": with_header(b'{"\xff": 1}'),
    "a header of numbers": with_header(b"[1,2,3]"),
    "a header that is longer than the file": struct.pack("<Q", 1 << 62) + b"{}",
    "a tensor of 2^63 values": GOOD.replace(b"[4,3]", b"[9223372036854775808,3]"),
    "a negative shape": GOOD.replace(b'"shape":[4]', b'"shape":[-4]'),
    "offsets beyond the file": GOOD.replace(b"[0,48]", b"[0,99]"),
    "nothing": b"",
}


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_model_file_is_named_within_a_second(tmp_path, case):
    path = tmp_path / "m.safetensors"
    path.write_bytes(CASES[case])
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(DataError) as refused:
        read_model(path)
    assert time.monotonic() - began < 1
    assert refused.value.code == "bad_model"
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 1000 + len(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KB


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(60 << 30)
    made = {"fifo": "not_a_file", "sparse": "too_large", "": "not_a_file", "missing": "storage"}
    began = time.monotonic()
    for name, code in made.items():
        with pytest.raises(FlamestError) as refused:
            read_model(tmp_path / name)
        assert (name, refused.value.code) == (name, code)
    with pytest.raises(DataError) as refused:
        read_model("/dev/zero")
    assert refused.value.code == "not_a_file"
    assert time.monotonic() - began < 1


def test_no_model_is_written_that_would_not_be_read(tmp_path):
    for changes in ({"labels": ("x", "x")}, {"fingerprint": ""}, {"round": -1}):
        fields = {"labels": ("x", "y"), "fingerprint": "f", "round": 1, **changes}
        with pytest.raises(DataError):
            write_model(tmp_path / "m", ModelFile(SPEC, initial_params(SPEC, 0), **fields))
        assert not (tmp_path / "m").exists()
