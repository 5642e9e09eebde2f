"""Runs with a lossy codec: coordinator, clients and the worker's round, bit for bit like the simulation."""

from pathlib import Path

import numpy as np
import pytest
from flamest.agent.client import CoordinatorClient
from flamest.agent.egress.policy import Policy
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.agent.tasks import DataSource, RoundWork, train_round
from flamest.agent.training.dataset import FeatureTable, silo_data
from flamest.base.errors import DataError
from flamest.base.files import sha256_bytes
from flamest.experiments.simulation import SimulatedSilo, simulate
from flamest.fedproto.codecs import CODECS, encode_delta, more_exact, size_bounds
from flamest.fedproto.records import EncodedUpdate, Phase, RunSettings, TaskStatus, Update
from flamest.fedproto.tensors import payload_bytes
from flamest.runtime.clip_records import Clip

SIZES = {"a": 9, "b": 21}
LABELS = ("fall", "run", "walk")
ROUNDS = 3
FEW = Policy(min_samples=1)


def rows_of(silo: str) -> FeatureTable:
    random = np.random.default_rng(sum(silo.encode()))
    y = np.arange(SIZES[silo]) % len(LABELS)
    return FeatureTable((random.normal(size=(SIZES[silo], 6)) + y[:, None]).astype(np.float32), y)


class Silo:
    """A silo's store, state and client, driven round by round."""

    def __init__(self, federation, folder: Path, name: str, coarsest: str = "sparse_int8") -> None:
        self.name, self.federation, self.folder, self.coarsest = name, federation, folder / name, coarsest
        self.folder.mkdir()
        table = rows_of(name)
        with FeatureStore.open(self.folder / "store.sqlite") as store:
            clips = [
                Clip(Path(f"{n:02}.mp4"), sha256_bytes(f"{n:02}".encode()), LABELS[y], None)
                for n, y in enumerate(table.y)
            ]
            store.add_rows(
                [
                    (clip.path.name, FeatureRow(clip, x, 4, "fingerprint", "fp32"))
                    for clip, x in zip(clips, table.x, strict=True)
                ]
            )
        self.client: CoordinatorClient = federation.client(name)
        self.run: RunSettings = self.client.join()

    def table(self) -> FeatureTable:
        """The worker's training rows, in its order."""
        with FeatureStore.open(self.folder / "store.sqlite", create=False, read_only=True) as store:
            return silo_data(store.read("fingerprint", None), LABELS, hold_out=0.0, seed=self.run.seed).train

    def reconnect(self) -> None:
        self.client.close()
        self.client = self.federation.client(self.name)
        self.client.join()

    def train(self, status: TaskStatus) -> Update:
        model = self.client.fetch(self.run, status)
        source = DataSource(self.folder / "store.sqlite", None, 0.0, 1)
        codec = more_exact(self.run.codec, self.coarsest)
        state = self.folder / "state"
        out = train_round(source, RoundWork(self.run, self.name, model, status.counted_round, state, FEW, (), codec))
        name = sha256_bytes(f"{self.name}{model.round}".encode())[:32]
        return Update(model.round, model.sha256, name, out.examples, out.params, None, out.encoded)

    def answer(self, before: int) -> None:
        status = self.client.wait(self.run, before, 20)
        assert status.phase is Phase.OPEN
        self.client.submit(self.run, self.train(status))

    def final(self) -> str:
        status = self.client.wait(self.run, ROUNDS, 20)
        assert status.phase is Phase.FINISHED
        return self.client.fetch(self.run, status).sha256


def started(make_federation, codec: str):
    federation = make_federation(*SIZES, rounds=ROUNDS, min_silos=2, examples_times=0, codec=f'"{codec}"')
    federation.start()
    return federation


@pytest.mark.parametrize("codec", CODECS)
def test_a_run_with_a_restart_ends_in_the_simulations_bytes(make_federation, tmp_path, codec):
    federation = started(make_federation, codec)
    silos = [Silo(federation, tmp_path, name) for name in SIZES]
    for number in range(ROUNDS):
        if number == 2:  # residuals are on disk on both sides
            federation.stop()
            federation.start()
            for silo in silos:
                silo.reconnect()
        for silo in reversed(silos):
            silo.answer(number)
    finals = {silo.final() for silo in silos}
    for silo in silos:
        silo.client.close()
    tables = [SimulatedSilo(silo.name, silo.table()) for silo in silos]
    assert finals == {simulate(silos[0].run, tables, threads=1).sha256}


@pytest.mark.parametrize("codec", CODECS[1:])
def test_a_round_sends_a_delta_down_and_a_delta_up(make_federation, tmp_path, codec):
    federation = started(make_federation, codec)
    silos = [Silo(federation, tmp_path, name) for name in SIZES]
    for silo in silos:
        silo.answer(0)
    client, largest = silos[0].client, size_bounds(codec, silos[0].run.head)[1]
    before = client.sent_bytes + client.received_bytes
    silos[0].answer(1)
    assert client.sent_bytes + client.received_bytes - before < 2 * largest + 700
    silos[1].answer(1)
    silos[1].reconnect()  # without the previous model the whole one is sent
    before = silos[1].client.received_bytes
    silos[1].train(silos[1].client.wait(silos[1].run, 2, 20))
    assert silos[1].client.received_bytes - before > payload_bytes(silos[1].run.head)
    for silo in silos:
        silo.client.close()


def test_a_silo_may_use_a_more_exact_codec_but_no_coarser_one(make_federation, tmp_path):
    federation = started(make_federation, "int8")
    exact, silo = Silo(federation, tmp_path, "a", "fp32"), Silo(federation, tmp_path, "b")
    exact.answer(0)
    status = silo.client.wait(silo.run, 0, 20)
    model = silo.client.fetch(silo.run, status)
    encoded = encode_delta("sparse_int8", silo.run.head, model.params, model.params, None)
    coarse = EncodedUpdate("sparse_int8", encoded.payload, encoded.error)
    with pytest.raises(DataError, match="this run allows int8 at most") as refused:
        silo.client.submit(silo.run, Update(1, model.sha256, "0f" * 16, 5, None, None, coarse))
    assert refused.value.code == "codec"
    silo.answer(0)
    for each in (exact, silo):
        assert each.client.wait(each.run, 1, 20).round == 2
        each.client.close()
    payloads = {row["received_bytes"] for row in federation.rounds()[:1]}
    assert payloads


@pytest.mark.parametrize("codec", ["int8", "sparse_int8"])
def test_an_update_that_was_not_counted_keeps_the_residual(make_federation, tmp_path, codec):
    federation = started(make_federation, codec)
    silos = [Silo(federation, tmp_path, name) for name in SIZES]
    for silo in silos:
        silo.answer(0)
    status = silos[0].client.wait(silos[0].run, 1, 20)
    assert status.counted_round == 1
    first = silos[0].train(status).encoded.payload
    again = silos[0].train(status).encoded.payload  # after a crash: the same bytes
    files = sorted(path.name for path in (tmp_path / "a" / "state").rglob("round-*.arrays"))
    assert first == again
    assert files == ["round-000001.arrays", "round-000002.arrays"]
    for silo in silos:
        silo.client.close()
