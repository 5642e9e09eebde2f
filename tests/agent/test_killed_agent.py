"""An agent killed with SIGKILL while it extracts, trains and uploads loses no clip and sends no round twice.

The agent is the real process with its worker and decoder; clips, networks and the coordinator are real too. Its line to
the coordinator is slow, so that an upload takes long enough to be struck.
"""

import random
import re
import subprocess
import sys
import time

import apsw
import numpy as np
import pytest
from flamest.agent.extraction.store import FeatureStore
from flamest.agent.status import AgentStatus, read_status
from flamest.base.errors import FlamestError
from flamest.base.files import sha256_file
from flamest.coordinator.admin.history import History
from flamest.coordinator.serving.upload import UploadReceiver
from flamest.experiments.faults import FaultProxy
from flamest.runtime.bundle.opening import open_manifest

CLIPS = 9
LINE = 400_000  # bytes per second
LABELS = ("fall", "run", "walk")

SETTINGS = """
state = "state"
store = "features.sqlite"
bundle = "{bundle}"
videos = "videos"

[coordinator]
address = "{address}"
ca = "{connection.ca}"
certificate = "{connection.certificate}"
key = "{connection.key}"

[policy]
min_samples = 1
min_samples_override = true
hold_out = 0.2

[work]
threads = 1
"""


class Silo:
    """The agent's folder, and at most one process of it."""

    def __init__(self, folder, proxy: FaultProxy) -> None:
        self.folder, self.proxy = folder, proxy
        self.logs: list[str] = []
        self.stored_before: list[int] = []

    def start(self) -> None:
        self.stored_before.append(len(self.stored()))
        self._log = self.folder / f"log-{len(self.logs)}"
        words = [sys.executable, "-m", "flamest.agent", "run", "--config", str(self.folder / "agent.toml"), "--once"]
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(words, stdout=out, stderr=out)

    def status(self) -> AgentStatus:
        try:
            return read_status(self.folder / "state")
        except FlamestError:
            return AgentStatus()

    def is_at(self, doing: str) -> bool:
        now = self.status()
        return now.pid == self.process.pid and now.doing == doing

    def stored(self) -> tuple[str, ...]:
        try:
            with FeatureStore.open(self.folder / "features.sqlite", create=False, read_only=True) as store:
                return store.read().clips
        except FlamestError:  # nothing yet
            return ()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self, seconds: float = 120.0) -> int:
        code = self.process.wait(seconds)
        self.logs.append(self._log.read_text())
        return code

    def await_(self, ready) -> bool:
        """False when the process ended before; its end is an error of its own."""
        give_up = time.monotonic() + 90
        while not ready():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < give_up, self._log.read_text()
            time.sleep(0.02)
        return True


def strike(silo: Silo, where: str, chance: random.Random) -> None:
    """Kill it at a random instant of ``where``: extracting, training or uploading."""
    silo.start()
    if where == "extracting" and len(silo.stored()) < CLIPS:
        more = min(len(silo.stored()) + chance.randint(0, 2), CLIPS)
        if silo.await_(lambda: silo.is_at("extracting") or silo.is_at("training")):
            silo.await_(lambda: len(silo.stored()) >= more)
            time.sleep(chance.uniform(0.0, 0.3))
    elif silo.await_(lambda: silo.is_at("training")):
        if where != "uploading":  # the model's download is a part of it
            time.sleep(chance.uniform(0.0, 2.5))
        else:
            there = silo.proxy.passed["up"] + chance.randint(40_000, 200_000)
            silo.await_(lambda: silo.proxy.passed["up"] > there)
    assert silo.process.poll() is None, silo._log.read_text()
    silo.kill()


def kill_again_and_again(federation, folder, make_clips, bundle, monkeypatch, strikes: list[str], seed: int) -> None:
    announced: list[tuple[int, str]] = []
    original = UploadReceiver.header

    async def watched(self, silo, parts, until):
        reported = await original(self, silo, parts, until)
        announced.append((reported.header.round, reported.header.update_id))
        return reported

    monkeypatch.setattr(UploadReceiver, "header", watched)
    folder.mkdir()
    make_clips(folder / "videos")
    chance = random.Random(seed)
    federation.start()
    with FaultProxy(federation.address, bytes_per_s=LINE) as proxy:
        connection = federation.connection_settings("a")
        (folder / "agent.toml").write_text(SETTINGS.format(bundle=bundle, address=proxy.address, connection=connection))
        silo = Silo(folder, proxy)
        for where in strikes:
            strike(silo, where, chance)
        silo.start()
        assert silo.end(300) == 0, silo.logs[-1]

    assert apsw.Connection(str(folder / "features.sqlite")).pragma("integrity_check") == "ok"
    with FeatureStore.open(folder / "features.sqlite", create=False, read_only=True) as store:
        stored = store.read()
    assert sorted(stored.clips) == sorted(sha256_file(path) for path in (folder / "videos").rglob("*.avi"))
    assert np.isfinite(stored.x).all()
    for before, output in zip(silo.stored_before, silo.logs, strict=True):
        for reported in re.findall(r"event=extracted clips=(\d+) extracted=(\d+) skipped=(\d+) failed=0", output):
            clips, extracted, skipped = map(int, reported)
            assert (clips, extracted + skipped) == (CLIPS, CLIPS)
            assert skipped >= before  # what was stored is not embedded again
    rows = federation.rounds()
    with History.open(federation.state, "run-1") as history:
        assert [row.last_refusal for row in history.silos()] == [None]
    assert {(row["status"], row["accepted"], row["refused"]) for row in rows} == {("closed", 1, 0)}
    ids = {number: {reported for at, reported in announced if at == number} for number, _ in announced}
    assert all(len(of_round) == 1 for of_round in ids.values())  # an interrupted upload comes back as the same update
    if "uploading" in strikes:
        assert len(announced) > len(rows)


@pytest.fixture
def make_clips(clips):
    def make(folder) -> None:
        for number in range(CLIPS):
            clips.write_clip(folder / LABELS[number % 3] / f"{number}.avi", frames=12, seed=number, noise=10)

    return make


def federation_for(make_federation, bundle, rounds: int):
    manifest, _ = open_manifest(bundle)
    fingerprint = f'"{manifest.fingerprint}"'
    return make_federation("a", rounds=rounds, min_silos=1, inputs=9, hidden=[256, 256], fingerprint=fingerprint)


def test_a_killed_agent_loses_no_clip_and_resumes_its_upload(
    make_federation, toy_bundle, make_clips, tmp_path, monkeypatch
):
    """Reduced: three instants, one in each phase."""
    federation = federation_for(make_federation, toy_bundle, 2)
    strikes = ["extracting", "training", "uploading"]
    kill_again_and_again(federation, tmp_path / "silo", make_clips, toy_bundle, monkeypatch, strikes, seed=5)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(8))
def test_an_agent_killed_at_25_instants_loses_nothing(
    make_federation, toy_bundle, make_clips, tmp_path, monkeypatch, seed
):
    """200 random instants, in eight runs."""
    strikes = ["extracting"] * 3 + random.Random(seed).choices(["training", "uploading"], k=22)
    federation = federation_for(make_federation, toy_bundle, 150)  # more than the strikes let pass
    kill_again_and_again(federation, tmp_path / "silo", make_clips, toy_bundle, monkeypatch, strikes, seed)
