"""Every file argument of the programs, given something that is not such a file: a named end, soon, without a traceback.

The commands run in this process, through the entry points. An alarm ends one that waits.
"""

import os
import signal
import socket
import time
from contextlib import contextmanager

import numpy as np
import pytest
from flamest.agent.cli.main import app as agent
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.experiments.cli import app as experiment
from flamest.export.cli.main import app as export
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.model_file import ModelFile, write_model
from flamest.runtime.clip_records import Clip
from typer.testing import CliRunner

LONGEST_S = 30.0  # most of it is the import of PyTorch on a busy machine
NAMED = {2, 65, 69, 74, 78}  # exit codes of docs/reference/exit-codes.md for wrong input
SPARSE = 60_000_000_000  # bytes


def fifo(path):
    os.mkfifo(path)


def folder(path):
    path.mkdir()


def zeros(path):
    path.symlink_to("/dev/zero")


def nothing(path):
    path.symlink_to("/dev/null")


def loop(path):
    path.symlink_to(path)


def empty(path):
    path.touch()


def binary(path):
    path.write_bytes(b"\xff\xfe\x00\xc3\x28" * 100)


def sparse(path):
    path.touch()
    os.truncate(path, SPARSE)


def listening(path):
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has at most 107 characters
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


KINDS = {
    "fifo": fifo,
    "folder": folder,
    "dev_zero": zeros,
    "dev_null": nothing,
    "loop": loop,
    "empty": empty,
    "binary": binary,
    "sparse": sparse,
    "socket": listening,
}

AGENT = {
    "doctor --bundle": "doctor --bundle BAD",
    "egress --config": "egress --config BAD",
    "egress --state": "egress --state BAD",
    "extract --bundle": "extract --bundle BAD --videos VIDEOS --store NEW",
    "extract --videos": "extract --bundle BUNDLE --videos BAD --store NEW",
    "extract --store": "extract --bundle BUNDLE --videos VIDEOS --store BAD",
    "extract --trusted-key": "extract --bundle BUNDLE --videos VIDEOS --store NEW --trusted-key BAD",
    "features --store": "features --store BAD --out NEW",
    "import-features": "import-features BAD --store NEW",
    "import-features --store": "import-features FEATURES --store BAD",
    "run --config": "run --config BAD --check-config",
    "run": "run --config BAD --once",
    "status": "status --config BAD",
    "train --store": "train --store BAD --out NEW",
    "predict --bundle": "predict VIDEO --bundle BAD --model MODEL",
    "predict --model": "predict VIDEO --bundle BUNDLE --model BAD",
}
EXPORT = {
    "inspect": "inspect BAD",
    "check": "check BAD",
    "verify": "verify BAD",
    "bench": "bench BAD",
    "sign": "sign BAD --key NEW",
    "sign --key": "sign BUNDLE --key BAD",
    "inspect --trusted-key": "inspect BUNDLE --trusted-key BAD",
    "doctor --bundle": "doctor --bundle BAD",
    "verify-weights": "verify-weights BAD",
    "--blip": "--backend onnx --extractor blip --slow random:tiny --blip BAD --out NEW",
    "--slow": "--backend onnx --extractor slow --slow BAD --out NEW",
    "--clip": "--backend onnx --extractor clip --slow random:tiny --clip BAD --out NEW",
    "--calibration": "--backend onnx --extractor slow --weights random:tiny --calibration BAD --out NEW",
}
EXPERIMENT = {
    "table2 --store": "table2 --store BAD --dataset ucf101 --out NEW",
    "table2 --results": "table2 --store STORE --dataset ucf101 --results BAD --out NEW",
    "kd --videos": "kd --videos BAD --out NEW",
    "actionclip --clip": "actionclip --videos VIDEOS --clip BAD --out NEW",
}
PROGRAMS = {
    "flamest-agent": (agent, AGENT),
    "flamest-export": (export, EXPORT),
    "flamest-experiment": (experiment, EXPERIMENT),
}
RIGHT = {  # what is a file of that kind after all
    "extract --store": {"empty"},
    "import-features --store": {"empty"},
    "verify-weights": {"empty", "binary"},
    "table2 --results": {"folder"},
}
CASES = [
    pytest.param(app, line, kind, id=f"{name} {what}: {kind}")
    for name, (app, lines) in PROGRAMS.items()
    for what, line in lines.items()
    for kind in KINDS
    if kind not in RIGHT.get(what, ())
]


@pytest.fixture(scope="module")
def good(toy_bundle, clips, tmp_path_factory):
    """Files that are what they should be, by their word in the command lines."""
    place = tmp_path_factory.mktemp("good")
    video = clips.write_clip(place / "videos" / "wave" / "a.avi", frames=12)
    store = place / "store.sqlite"
    with FeatureStore.open(store) as opened:
        rows = [
            FeatureRow(
                Clip(place / f"{n}.avi", f"{n:064x}", "ab"[n % 2], f"g{n // 2}"),
                np.eye(4, dtype=np.float32)[n % 4],
                2,
                "f" * 64,
                "fp32",
            )
            for n in range(16)
        ]
        opened.add_rows((f"{n}.avi", row) for n, row in enumerate(rows))
    np.savez(place / "features.npz", x=np.eye(4, 7), y=np.array(["a", "a", "b", "b"]))
    head = HeadSpec(inputs=4, hidden=(3,), outputs=2)
    write_model(place / "model.safetensors", ModelFile(head, initial_params(head, 0), ("a", "b"), "f" * 64))
    return {
        "BUNDLE": toy_bundle,
        "VIDEOS": place / "videos",
        "VIDEO": video,
        "STORE": store,
        "FEATURES": place / "features.npz",
        "MODEL": place / "model.safetensors",
    }


class Waited(BaseException):
    """The alarm: no command may take it for an error of a file."""


@contextmanager
def alarm(seconds):
    def waited(*_):
        raise Waited(f"it still ran after {seconds} s")

    before = signal.signal(signal.SIGALRM, waited)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def signals_kept():
    """Commands that install handlers (extract, run) leave them: the next test must not have them."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def words(line, bad, good, place):
    known = {**good, "BAD": bad, "NEW": place / "new"}
    return [str(known.get(word, word)) for word in line.split()]


@pytest.mark.parametrize(("app", "line", "kind"), CASES)
def test_a_file_of_a_wrong_kind_ends_by_name(app, line, kind, good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / ("bad.safetensors" if "--slow BAD" in line else "bad")
    KINDS[kind](bad)
    began = time.monotonic()
    with signals_kept(), alarm(LONGEST_S):
        result = CliRunner().invoke(app, words(line, bad, good, tmp_path))
    took = time.monotonic() - began
    assert isinstance(result.exception, SystemExit), (result.exception, result.output)
    assert result.exit_code in NAMED, (result.exit_code, result.output)
    assert "Traceback" not in result.output
    assert took < LONGEST_S
