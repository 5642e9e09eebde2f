"""``python make_state.py OUT``: what a site and a centre have on disk, made by the flamest that this Python finds.

Run with a release on PYTHONPATH. ``OUT`` then has the coordinator's folder in the middle of a run (``centre``), two
silos (``anna``, ``berta``: store, ledger, client state, status), a backup, a model file, the bundle that comes with the
release, one message of each kind as it goes over the wire, and ``expected.json``: what the release says of all this.
Only its commands are used, which stay.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from release import Release, Running, running

SILOS = ("anna", "berta")
LABELS = ("run", "jump", "wave")
WIDTH, ROWS, ROUNDS = 12, 60, 25
NAME = "upgrade"
COORDINATOR = f"""\
[server]
listen = "127.0.0.1:0"
ca = "ca.pem"
certificate = "server.pem"
key = "server-key.pem"
silos = "silos.json"
state = "state"

[run]
name = "upgrade"
labels = ["run", "jump", "wave"]
fingerprint = "imported:{NAME}:{WIDTH}"
inputs = {WIDTH}
hidden = [8]
rounds = {ROUNDS}
min_silos = 2
deadline_s = 60
codec = "int8"
final_evaluation = "model"

[run.strategy]
name = "feddyn"
alpha = 0.1

[run.train]
epochs = 1
"""
AGENT = """\
state = "state"
store = "features.sqlite"

[coordinator]
address = "127.0.0.1:7443"
ca = "ca.pem"
certificate = "silo.pem"
key = "{silo}.key"

[policy]
min_samples = 1
min_samples_override = true

[work]
threads = 1
"""


def main(out: Path) -> None:
    release = Release()
    out.mkdir(parents=True)
    make_federation(release, out)
    with running(out / "logs") as daemons:
        address = daemons.start_centre(release, out / "centre")
        for silo in SILOS:
            daemons.start_silo(release, out / silo, address)
        daemons.wait(lambda: len(model_files(out)) >= 3, "the third round")
        release.run("coordinator", "backup", "--config", out / "centre" / "coordinator.toml", "--out", out / "backup")
        stop(daemons)
    shutil.rmtree(out / "logs")
    unpack = "import sys; from flamest.runtime.bundle.packaged import miniworld_bundle; miniworld_bundle(sys.argv[1])"
    release.python("-c", unpack, out / "bundle")
    write_messages(out / "messages.json")
    (out / "expected.json").write_text(json.dumps(describe(release, out), indent=1))


def model_files(out: Path) -> list[Path]:
    return list((out / "centre" / "state").rglob("*.safetensors"))


def make_federation(release: Release, out: Path) -> None:
    release.run("coordinator", "init", out / "centre", "--host", "127.0.0.1")
    (out / "centre" / "coordinator.toml").write_text(COORDINATOR)
    for silo in SILOS:
        home = out / silo
        made = release.run("agent", "keygen", silo, "--out", home)
        folder = ("--dir", out / "centre")
        signed = release.run("coordinator", "silo", "add", silo, "--csr", made["csr"], *folder)
        for name in ("silo.pem", "ca.pem"):
            shutil.copyfile(Path(signed["hand_over"]) / name, home / name)
        (home / "agent.toml").write_text(AGENT.format(silo=silo))
        write_features(home / "mine.npz", seed=SILOS.index(silo))
        store = ("--store", home / "features.sqlite")
        release.run("agent", "import-features", home / "mine.npz", "--name", NAME, *store)


def write_features(path: Path, seed: int) -> None:
    """Rows that a classifier can learn, in groups of five."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(len(LABELS), WIDTH)) * 2
    kinds = np.arange(ROWS) % len(LABELS)
    x = (centres[kinds] + random.normal(size=(ROWS, WIDTH))).astype(np.float32)
    np.savez(path, x=x, y=np.array(LABELS)[kinds], group=np.array([f"scene-{row // 5}" for row in range(ROWS)]))


def stop(daemons: Running) -> None:
    """End the agents before the coordinator, so that nothing is in flight."""
    for _, process, _ in reversed(daemons.processes):
        process.terminate()
        process.wait(60)


def describe(release: Release, out: Path) -> dict[str, Any]:
    """Return the output of the release's own commands about the state, and digests of the files they write."""
    config = ("--config", out / "centre" / "coordinator.toml")
    history = release.run("coordinator", "history", *config)["rounds"]
    closed = [row for row in history if row["status"] == "closed"]
    assert 2 <= len(closed) < ROUNDS, "the run was to be stopped in its middle"
    release.run("coordinator", "model", *config, "--out", out / "model.safetensors")
    silos = {}
    for silo in SILOS:
        features = out / f"{silo}.npz"
        release.run("agent", "features", "--store", out / silo / "features.sqlite", "--out", features)
        with np.load(features) as arrays:
            silos[silo] = {name: digest(arrays[name]) for name in arrays.files}
        features.unlink()
    return {
        "version": release.python("-c", "import flamest; print(flamest.__version__)").strip(),
        "closed": [[row["round"], row["accepted"], row["model_sha256"]] for row in closed],
        "features": silos,
        "sent": {silo: sent(release, out / silo) for silo in SILOS},
        "fingerprint": release.run("export", "inspect", out / "bundle")["fingerprint"],
    }


def sent(release: Release, home: Path) -> int:
    """Number of lines in a silo's egress ledger, which the command verifies."""
    return len(release.run("agent", "egress", "--config", home / "agent.toml")["entries"])


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes()).hexdigest()


def write_messages(path: Path) -> None:
    """Write one message of each kind, every field filled, as bytes and as the names and values of its fields."""
    from flamest.fedproto import flamest_v1_pb2 as wire
    from google.protobuf import json_format

    messages = {}
    for name, kind in sorted(wire.DESCRIPTOR.message_types_by_name.items()):
        message = getattr(wire, name)()
        fill(message, depth=0)
        encoded = message.SerializeToString(deterministic=True).hex()
        messages[kind.full_name] = {"bytes": encoded, "fields": json_format.MessageToDict(message)}
    path.write_text(json.dumps(messages, indent=1))


def fill(message: Any, depth: int) -> None:
    """Give every field of a message a value of its own; of a oneof the last field stays."""
    for field in message.DESCRIPTOR.fields:
        repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
        if field.message_type is not None:
            if depth < 4:
                inner = getattr(message, field.name)
                fill(inner.add() if repeated else inner, depth + 1)
            continue
        value: Any = field.number
        if field.enum_type is not None:
            value = field.enum_type.values[-1].number
        elif field.cpp_type == field.CPPTYPE_STRING:
            value = bytes([field.number]) * 4 if field.type == field.TYPE_BYTES else f"text {field.number}"
        elif field.cpp_type == field.CPPTYPE_BOOL:
            value = True
        if repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
