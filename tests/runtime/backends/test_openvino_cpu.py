"""OpenVINO compared with ONNX Runtime on the tiny bundle's graphs; it reports nothing and never lowers precision."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from flamest.base.errors import FlamestError
from flamest.runtime.backends.machine import gather_facts
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.backends.openvino_cpu import HostValue, OpenVinoSession
from flamest.runtime.bundle.manifest_reading import read_manifest

needs_bf16 = pytest.mark.skipif(not gather_facts().bf16, reason="this processor has no bf16")
GRAPHS = ("keyframes", "vision", "text", "cnn")


def feeds_of(bundle, name):
    """Seeded inputs for two rows, a past of three tokens, one new token."""
    graph = read_manifest(bundle).graphs[name]
    sizes = {"batch": 2, "tokens": 1, "past": 3, "frames": 4}
    sizes |= {word: axis.usual for word, axis in graph.axes.items() if word not in sizes}
    rng, feeds = np.random.default_rng(1), {}
    for tensor in graph.inputs:
        shape = [
            part if isinstance(part, int) else sum(sizes[word.strip()] for word in part.split("+"))
            for part in tensor.shape
        ]
        if tensor.dtype == "int64" or tensor.name == "mask":
            feeds[tensor.name] = np.ones(shape, tensor.dtype) if tensor.dtype == "int64" else np.zeros(shape, "float32")
        elif tensor.dtype == "uint8":
            feeds[tensor.name] = rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            feeds[tensor.name] = rng.standard_normal(shape, dtype=np.float32)
    return feeds


@pytest.mark.parametrize("name", GRAPHS)
def test_float32_is_onnx_runtimes_to_1e_5(tiny_bundle, name):
    feeds = feeds_of(tiny_bundle, name)
    expected = open_session(tiny_bundle / f"{name}.onnx", threads=1).run(feeds)
    session = OpenVinoSession.open(tiny_bundle / f"{name}.onnx", threads=1)
    got = session.run(feeds)
    assert set(session.inputs) == set(feeds)
    assert set(got) == set(expected)
    assert session.where == "OpenVINO CPU f32"
    for output, array in expected.items():
        assert got[output].dtype == array.dtype
        np.testing.assert_allclose(got[output], array, atol=1e-5 * np.abs(array).max(), err_msg=output)


@needs_bf16
@pytest.mark.parametrize("name", ["vision", "text", "cnn"])
def test_bf16_is_really_computed_with_a_cosine_above_0_999(tiny_bundle, name):
    feeds = feeds_of(tiny_bundle, name)
    exact = OpenVinoSession.open(tiny_bundle / f"{name}.onnx", threads=1).run(feeds)
    session = OpenVinoSession.open(tiny_bundle / f"{name}.onnx", computed="bf16", threads=1)
    assert session.where == "OpenVINO CPU bf16"
    values = session.run(feeds)
    values.pop("next_token", None)  # a whole number
    for output, got in values.items():
        one, other = exact[output].ravel().astype(np.float64), got.ravel().astype(np.float64)
        assert one @ other > 0.999 * np.linalg.norm(one) * np.linalg.norm(other), output
        assert not np.array_equal(one, other), output


def test_a_later_run_does_not_change_values(tiny_bundle):
    session = OpenVinoSession.open(tiny_bundle / "text.onnx", threads=1)
    feeds = feeds_of(tiny_bundle, "text")
    values = session.run_values(feeds)
    before = values["hidden"].numpy().copy()
    session.run_values({**feeds, "token_ids": feeds["token_ids"] + 5})
    np.testing.assert_array_equal(values["hidden"].numpy(), before)
    assert session.value(values["hidden"]) is values["hidden"]
    other = open_session(tiny_bundle / "text.onnx", threads=1).value(before)
    assert isinstance(session.value(other), HostValue)


def test_a_file_that_is_no_graph_has_its_code(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(FlamestError) as caught:
        OpenVinoSession.open(tmp_path / "x.onnx")
    assert (caught.value.code, caught.value.exit_code) == ("OPENVINO_REJECTED", 65)


WATCHED = """
import sys
heard = []
def hear(event, arguments):
    if event.startswith(("socket.", "os.fork", "os.posix_spawn", "subprocess.")):
        heard.append(event)
sys.addaudithook(hear)
from pathlib import Path
from flamest.runtime.backends.openvino_cpu import OpenVinoSession
OpenVinoSession.open(Path(sys.argv[1]), threads=1)
print(sorted(set(heard)), "openvino" in sys.modules)
"""


def test_openvino_reports_nothing_and_writes_no_identifier(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    command = [sys.executable, "-c", WATCHED, str(tiny_bundle / "keyframes.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"
    assert list(tmp_path.iterdir()) == []


SIGNALLED = """
import gc, os, signal, sys
from pathlib import Path
from flamest.runtime.backends.openvino_cpu import OpenVinoSession

signal.signal(signal.SIGINT, lambda *_: print("handled", flush=True))
sessions = [OpenVinoSession.open(Path(sys.argv[1]), threads=1) for _ in range(3)]
for first_opened in (0, 0, 0):  # closed in the order of opening
    del sessions[first_opened]
    gc.collect()
spare = [bytearray(1 << 16) for _ in range(200)]
os.kill(os.getpid(), signal.SIGINT)
"""


def test_a_process_that_closed_its_sessions_still_handles_signals(tiny_bundle):
    command = [sys.executable, "-c", SIGNALLED, str(tiny_bundle / "keyframes.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
