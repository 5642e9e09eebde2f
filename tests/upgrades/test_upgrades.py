"""State of release 0.2.0 is opened, continued and understood: store, state, backup, model, bundle, wire.

The state is committed (state-0.2.0.zip); `make upgrades` has the wheel of the tag make it again. Where the clone has
the tag, old and new processes share a federation over mutual TLS. docs/reference/versions.md lists what is upgraded
and what is refused.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SILOS = ("anna", "berta")


def expected(state: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads((state / "expected.json").read_text())
    return answer


def settings(state: Path) -> tuple[str, Path]:
    return "--config", state / "centre" / "coordinator.toml"


def closed_rounds(release: Any, state: Path) -> list[list[Any]]:
    rows = release.run("coordinator", "history", *settings(state))["rounds"]
    return [[row["round"], row["accepted"], row["model_sha256"]] for row in rows if row["status"] == "closed"]


def renew_certificates(release: Any, state: Path) -> None:
    """The committed ones end a year after the release; the authority lasts ten."""
    folder = ("--dir", state / "centre")
    release.run("coordinator", "renew", *folder)
    for silo in SILOS:
        release.run("coordinator", "silo", "renew", silo, *folder)
        made = (state / "centre" / "silos" / silo / "silo.pem").read_bytes()
        (state / silo / "silo.pem").write_bytes(made)


def run_to_the_end(releases: Any, state: Path, centre: Any, silos: dict[str, Any]) -> None:
    """Continue the run until both agents have ended with it."""
    with releases.running(state / "logs") as daemons:
        address = daemons.start_centre(centre, state / "centre")
        agents = [daemons.start_silo(release, state / silo, address) for silo, release in silos.items()]
        daemons.wait(lambda: all(agent.poll() == 0 for agent in agents), "the end of the run")


def test_a_store_has_the_same_features(state, current):
    for silo, arrays in expected(state)["features"].items():
        out = state / f"{silo}.npz"
        current.run("agent", "features", "--store", state / silo / "features.sqlite", "--out", out)
        with np.load(out) as found:
            assert set(arrays) <= set(found.files)
            assert {name: digest(found[name]) for name in arrays} == arrays


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes()).hexdigest()


def test_a_run_in_its_middle_continues_to_its_end(state, releases, current):
    before = expected(state)
    renew_certificates(current, state)
    assert closed_rounds(current, state) == before["closed"]
    run_to_the_end(releases, state, current, dict.fromkeys(SILOS, current))
    after = closed_rounds(current, state)
    assert after[: len(before["closed"])] == before["closed"]
    assert [row[0] for row in after] == list(range(1, 26))
    assert {row[1] for row in after} == {2}
    for silo in SILOS:
        entries = current.run("agent", "egress", "--config", state / silo / "agent.toml")["entries"]
        assert len(entries) > before["sent"][silo]  # verified from the release's first line on
        assert (state / silo / "state" / "model.safetensors").exists()


def test_a_backup_is_restored_and_tells_the_same(state, current):
    current.run("coordinator", "restore", *settings(state), "--from", state / "backup")
    restored = closed_rounds(current, state)
    assert len(restored) >= 2
    assert restored == expected(state)["closed"][: len(restored)]


def test_models_have_the_same_bytes(state, current):
    from flamest.fedproto.head import params_sha256
    from flamest.fedproto.model_file import encode_model, read_model

    rounds = expected(state)["closed"]
    current.run("coordinator", "model", *settings(state), "--out", state / "again.safetensors")
    for name in ("model", "again"):
        assert params_sha256(read_model(state / f"{name}.safetensors").params) == rounds[-1][2]
    model = state / "model.safetensors"
    assert encode_model(read_model(model)) == model.read_bytes()


def test_the_manifest_of_a_bundle_is_read_the_same(state):
    from flamest.runtime.bundle.opening import open_bundle, open_manifest

    bundle = state / "bundle"
    manifest, _ = open_manifest(bundle)
    assert manifest.fingerprint == expected(state)["fingerprint"]
    if len(list(bundle.iterdir())) > 1:  # the committed one is a manifest alone
        assert open_bundle(bundle).manifest == manifest


def test_every_message_is_read_and_written_the_same(state):
    from flamest.fedproto import flamest_v1_pb2 as wire
    from google.protobuf import json_format

    recorded = json.loads((state / "messages.json").read_text())
    assert recorded
    for name, message in recorded.items():
        read = getattr(wire, name.removeprefix("flamest.v1.")).FromString(bytes.fromhex(message["bytes"]))
        assert json_format.MessageToDict(read) == message["fields"], name
        assert read.SerializeToString(deterministic=True).hex() == message["bytes"], name


@pytest.mark.parametrize("newer", ["coordinator", "agents"])
def test_old_and_new_processes_share_a_federation(newer, committed, releases, current, released):
    renew_certificates(current, committed)
    centre, agent = (current, released) if newer == "coordinator" else (released, current)
    run_to_the_end(releases, committed, centre, dict.fromkeys(SILOS, agent))
    after = closed_rounds(centre, committed)
    assert [row[0] for row in after] == list(range(1, 26))
    assert {row[1] for row in after} == {2}
