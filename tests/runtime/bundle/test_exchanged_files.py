"""An attacker who may write to a bundle's folder, or to the folder that holds it, runs nothing that is not signed.

Hooks put the attacker's move exactly between the checks and the opening; a racing process tries its luck as well. The
unsigned graph is known by what it computes. Whatever an extractor was opened from, it is the signed one.
"""

import ctypes
import os
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flamest.base.errors import FlamestError
from flamest.runtime.backends import onnxruntime_cpu, openvino_cpu
from flamest.runtime.backends.opening import GraphOpener, OpeningOptions
from flamest.runtime.backends.options import BackendOptions
from flamest.runtime.bundle.opening import open_bundle
from flamest.runtime.bundle.signature import SIGNATURE_FILE, PublicKey, format_signatures, sign_manifest

OPERATOR = bytes([7]) * 32
TRUSTED = (PublicKey(Ed25519PrivateKey.from_private_bytes(OPERATOR).public_key().public_bytes_raw(), "operator"),)
AT_FDCWD, RENAME_EXCHANGE = -100, 2
FRAMES = {"frames": np.ones((1, 3, 8, 12, 12), np.float32)}


def exchange(first, second):
    """Exchange two names in one step, renameat2(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(first), os.fsencode(second))
    if libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


def sign(bundle):
    signature = sign_manifest((bundle / "bundle.json").read_bytes(), OPERATOR)
    (bundle / SIGNATURE_FILE).write_bytes(format_signatures([signature]))


@pytest.fixture
def place(toys, tmp_path):
    """Folders good/bundle, signed, and evil/bundle, unsigned and with other weights in every graph."""
    good = toys.write_bundle(tmp_path / "good" / "bundle")
    sign(good)
    evil = toys.write_bundle(tmp_path / "evil" / "bundle", seed=2)
    for graph in evil.glob("*.onnx"):
        model = onnx.load(graph)
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                values = onnx.numpy_helper.to_array(tensor) + np.float32(7)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        graph.write_bytes(model.SerializeToString())
    toys.write_manifest(evil)
    return tmp_path


def swap_folder(place):
    exchange(place / "good" / "bundle", place / "evil" / "bundle")


def swap_parent(place):
    exchange(place / "good", place / "evil")


def swap_by_link(place):
    os.rename(place / "good" / "bundle", place / "good" / "aside")
    os.symlink(place / "evil" / "bundle", place / "good" / "bundle")


def swap_parent_by_link(place):
    os.rename(place / "good", place / "aside")
    os.symlink(place / "evil", place / "good")


def swap_graph(place):
    exchange(place / "good" / "bundle" / "cnn.onnx", place / "evil" / "bundle" / "cnn.onnx")


def rewrite_graph(place):
    """Written in place: whoever has the file open reads the new content."""
    data = (place / "evil" / "bundle" / "cnn.onnx").read_bytes()
    status = (place / "good" / "bundle" / "cnn.onnx").stat()
    with (place / "good" / "bundle" / "cnn.onnx").open("r+b") as file:
        file.write(data)
        file.truncate()
    os.utime(place / "good" / "bundle" / "cnn.onnx", ns=(status.st_atime_ns, status.st_mtime_ns))


def link_graph(place):
    graph = place / "good" / "bundle" / "cnn.onnx"
    graph.unlink()
    graph.symlink_to(place / "evil" / "bundle" / "cnn.onnx")


def hard_link_graph(place):
    graph = place / "good" / "bundle" / "cnn.onnx"
    graph.unlink()
    os.link(place / "evil" / "bundle" / "cnn.onnx", graph)


def pipe_graph(place):
    graph = place / "good" / "bundle" / "cnn.onnx"
    graph.unlink()
    os.mkfifo(graph)


def remove_graph(place):
    (place / "good" / "bundle" / "cnn.onnx").unlink()


def swap_manifest(place):
    exchange(place / "good" / "bundle" / "bundle.json", place / "evil" / "bundle" / "bundle.json")
    swap_graph(place)


def swap_everything_inside(place):
    for name in os.listdir(place / "evil" / "bundle"):
        exchange(place / "good" / "bundle" / name, place / "evil" / "bundle" / name)


MOVES = [
    swap_folder,
    swap_parent,
    swap_by_link,
    swap_parent_by_link,
    swap_graph,
    rewrite_graph,
    link_graph,
    hard_link_graph,
    pipe_graph,
    remove_graph,
    swap_manifest,
    swap_everything_inside,
]


def tried(attempt):
    """The attempt's result and no error, or none and the FlamestError that it ended with."""
    try:
        return attempt(), None
    except FlamestError as error:
        return None, error


def embedding(session):
    return session.run(FRAMES)["embedding"].tobytes()


@pytest.fixture
def signed(place):
    """The embedding of the signed graph on each backend."""
    bundle = open_bundle(place / "good" / "bundle", TRUSTED)
    return {name: embedding(open_on(bundle, name)) for name in ("onnxruntime", "openvino")}


def open_on(bundle, backend):
    return GraphOpener(bundle, OpeningOptions(BackendOptions(backend, require=True), threads=1)).open("cnn")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("move", MOVES)
def test_a_move_between_check_and_opening_runs_nothing_unsigned(place, signed, move, backend):
    bundle = open_bundle(place / "good" / "bundle", TRUSTED)
    move(place)
    found, error = tried(lambda: embedding(open_on(bundle, backend)))
    if error is None:
        assert found == signed[backend]
    else:
        assert (error.code, error.exit_code) == ("bundle_tampered", 65)


@pytest.mark.parametrize("move", MOVES)
def test_a_move_while_a_runtime_opens_and_back_runs_nothing_unsigned(place, signed, move, monkeypatch):
    """The move of the outside attacker: the stamps before and after are equal."""
    import onnxruntime

    real = onnxruntime.InferenceSession

    def during(source, *arguments, **options):
        move(place)
        try:
            return real(source, *arguments, **options)
        finally:
            if move in (swap_folder, swap_parent, swap_graph, swap_manifest, swap_everything_inside):
                move(place)

    bundle = open_bundle(place / "good" / "bundle", TRUSTED)
    monkeypatch.setattr(onnxruntime, "InferenceSession", during)
    assert embedding(open_on(bundle, "onnxruntime")) == signed["onnxruntime"]


@pytest.mark.parametrize("move", [swap_folder, swap_parent, swap_by_link, swap_everything_inside])
@pytest.mark.parametrize("after", ["bundle.json", "bundle.sig"])
def test_a_move_while_the_manifest_is_read_gives_no_mixture(place, signed, move, after, monkeypatch):
    from flamest.runtime.bundle.folder import BundleFolder

    real = BundleFolder.read

    def read(folder, name, longest):
        data = real(folder, name, longest)
        if name == after:
            move(place)
        return data

    monkeypatch.setattr(BundleFolder, "read", read)
    bundle, error = tried(lambda: open_bundle(place / "good" / "bundle", TRUSTED))
    if error is None:
        assert embedding(open_on(bundle, "onnxruntime")) == signed["onnxruntime"]
    else:
        assert error.code in ("bundle_tampered", "UNTRUSTED")


def test_an_open_graph_does_not_change_with_its_file(place, signed):
    session = open_on(open_bundle(place / "good" / "bundle", TRUSTED), "onnxruntime")
    rewrite_graph(place)
    assert embedding(session) == signed["onnxruntime"]


def test_a_writer_through_shared_memory_changes_nothing_that_was_hashed(place, signed):
    """Pages that were written before the hash can be written again without a new time of change."""
    import mmap

    graph = place / "good" / "bundle" / "cnn.onnx"
    good, evil = graph.read_bytes(), (place / "evil" / "bundle" / "cnn.onnx").read_bytes()
    assert len(good) == len(evil)
    with graph.open("r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
        pages[:] = good
        bundle = open_bundle(place / "good" / "bundle", TRUSTED)
        pages[:] = evil
        with pytest.raises(FlamestError) as caught:
            open_on(bundle, "onnxruntime")
        assert caught.value.code == "bundle_tampered"
        pages[:] = good
        assert embedding(open_on(bundle, "onnxruntime")) == signed["onnxruntime"]


def test_the_copy_that_a_runtime_opens_cannot_be_written(place):
    bundle = open_bundle(place / "good" / "bundle", TRUSTED)
    with bundle.private_graph("cnn") as path:
        with pytest.raises(PermissionError), path.open("r+b") as file:
            os.write(file.fileno(), b"evil")
        assert path.read_bytes() == (place / "good" / "bundle" / "cnn.onnx").read_bytes()
    assert not path.exists()


def test_engine_and_tokenizer_are_the_bytes_that_were_hashed(place):
    bundle = open_bundle(place / "good" / "bundle", TRUSTED)
    tokenizer = (place / "good" / "bundle" / "tokenizer.json").read_bytes()
    swap_folder(place)
    assert bundle.read("tokenizer.json") == tokenizer


RACE = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
first, second = (os.fsencode(name) for name in sys.argv[1:3])
print("racing", flush=True)
while True:
    libc.renameat2(-100, first, -100, second, 2)
"""


@pytest.mark.parametrize(
    ("first", "second"),
    [("good", "evil"), ("good/bundle", "evil/bundle"), ("good/bundle/cnn.onnx", "evil/bundle/cnn.onnx")],
)
def test_a_racing_attacker_runs_nothing_unsigned(place, signed, first, second):
    command = [sys.executable, "-c", RACE, str(place / first), str(place / second)]
    outcomes = {"signed": 0, "refused": 0}
    bundle = place / "good" / "bundle"
    with subprocess.Popen(command, stdout=subprocess.PIPE) as racing:
        try:
            racing.stdout.readline()
            until = time.monotonic() + 6
            while time.monotonic() < until:
                session, error = tried(lambda: open_on(open_bundle(bundle, TRUSTED), "onnxruntime"))
                outcomes["signed" if error is None else "refused"] += 1
                assert embedding(session) == signed["onnxruntime"] if error is None else error.exit_code == 65
        finally:
            racing.kill()
    assert outcomes["refused"] + outcomes["signed"] > 20, outcomes
    assert outcomes["refused"], outcomes  # the attacker was there


def test_the_backends_are_given_private_copies_alone(place, monkeypatch):
    bundle = open_bundle(place / "good" / "bundle", TRUSTED)
    given = []
    for module, name in ((onnxruntime_cpu.OrtSession, "__init__"), (openvino_cpu.OpenVinoSession, "__init__")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda self, *rest, real=real: (given.append(rest), real(self, *rest))[1])
    for backend in ("onnxruntime", "openvino"):
        open_on(bundle, backend)
    assert [rest[-1].rpartition("/")[2] for rest in given] == ["cnn.onnx", "cnn.onnx"]  # named in messages as it was
