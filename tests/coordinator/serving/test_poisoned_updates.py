"""Updates that no honest silo sends, over the real wire: refused by code, without weight; three are a quarantine."""

from __future__ import annotations

import dataclasses
import os
import time

import grpc
import numpy as np
import pytest
from flamest.agent.client import StaleUpdate
from flamest.agent.client_errors import refusal_code
from flamest.base.errors import DataError
from flamest.base.files import sha256_bytes
from flamest.coordinator.admin.status import status_lines, status_of
from flamest.coordinator.cli import main
from flamest.fedproto import calls, messages
from flamest.fedproto.head import Params
from flamest.fedproto.records import Phase, Update
from flamest.fedproto.tensors import chunks, encode_params, shapes
from flamest.fedproto.tls import channel_credentials
from typer.testing import CliRunner

EXAMPLES = {"a": 40, "b": 25, "c": 31}
STEP = 1e-3  # of an honest update, per value: well within what Adam can travel


def honest(model: Params, silo: str, scale: float = 1.0) -> Params:
    random = np.random.default_rng(list(silo.encode()))
    return {
        name: (tensor + scale * STEP * random.choice([-1.0, 1.0], tensor.shape)).astype(np.float32)
        for name, tensor in model.items()
    }


class Sender:
    """A silo that can send what no agent would."""

    def __init__(self, federation, silo: str) -> None:
        settings = federation.connection_settings(silo)
        self.channel = grpc.secure_channel(
            settings.address, channel_credentials(settings.files), options=calls.client_options()
        )
        self.silo = silo
        with federation.client(silo) as client:
            self.run = client.join()
            self.status = client.wait(self.run, 0, 5)
            self.model = client.fetch(self.run, self.status)

    def parts(self, values: Params | bytes | None = None, **changes: object) -> list[bytes]:
        values = honest(self.model.params, self.silo) if values is None else values
        payload = values if isinstance(values, bytes) else b"".join(v.astype("<f4").tobytes() for v in values.values())
        header = messages.UpdateHeader(
            settings_sha256=self.run.sha256,
            round=self.status.round,
            base_sha256=self.model.sha256,
            update_id=os.urandom(16).hex(),
            examples=EXAMPLES[self.silo],
            shapes=shapes(self.run.head),
            payload_bytes=4 * self.run.head.parameters,
            payload_sha256=sha256_bytes(payload),
            evaluation=None,
        )
        pieces = map(messages.encode_update_data, chunks(payload))
        return [messages.encode_update_header(dataclasses.replace(header, **changes)), *pieces]

    def send(self, parts: list[bytes]) -> str:
        """``accepted``, or status and code of the refusal."""
        call = self.channel.stream_unary(calls.method_path(calls.SUBMIT_UPDATE), None, None)
        try:
            call(iter(parts), timeout=20)
        except grpc.RpcError as error:
            return f"{error.code().name} {refusal_code(error)}"
        return "accepted"


@pytest.fixture
def start(make_federation):
    def started(**run: object):
        federation = make_federation("a", "b", "c", **{"rounds": 4, "min_silos": 1, "norm_times": 4.0, **run})
        federation.start()
        return federation

    return started


def changed(sender: Sender, value: float, *, all_of_it: bool = False) -> Params:
    params = honest(sender.model.params, sender.silo)
    if all_of_it:
        return {name: np.full_like(tensor, value) for name, tensor in params.items()}
    params["1.bias"][1] = value
    return params


def flipped(sender: Sender, times: float) -> Params:
    moved = honest(sender.model.params, sender.silo)
    return {
        name: (tensor - times * (moved[name] - tensor)).astype(np.float32)
        for name, tensor in sender.model.params.items()
    }


def model_after_one_round(federation, senders: list[Sender]) -> str:
    for sender in senders:
        assert sender.send(sender.parts()) == "accepted"
    with federation.client("a") as client:
        return client.wait(senders[0].run, 1, 20).model_sha256


def test_dishonest_updates_are_refused_by_code_and_add_no_weight(start):
    """Silo c sends one bad update of every kind; the model is that of a and b alone, to the bit."""
    calm = start(wanted=2)
    expected = model_after_one_round(calm, [Sender(calm, silo) for silo in "ab"])
    calm.stop()

    harsh = start(wanted=2)
    bad = Sender(harsh, "c")
    good, data = bad.parts()[0], bad.parts()[1:]
    size = 4 * bad.run.head.parameters
    layout = shapes(bad.run.head)
    table = [
        (bad.parts(changed(bad, np.nan)), "not_finite"),
        (bad.parts(changed(bad, np.inf)), "not_finite"),
        (bad.parts(changed(bad, -np.inf)), "not_finite"),
        (bad.parts(changed(bad, 1e38)), "norm"),
        (bad.parts(changed(bad, 1e38, all_of_it=True)), "norm"),
        (bad.parts(changed(bad, 0.0, all_of_it=True)), "norm"),
        (bad.parts(flipped(bad, 100.0)), "norm"),
        (bad.parts(shapes=((6, 5), *layout[1:])), "tensor_shape"),
        (bad.parts(shapes=((5, 3, 2), *layout[1:])), "tensor_shape"),
        (bad.parts(shapes=layout[:-1]), "tensor_names"),
        (bad.parts(shapes=(*layout, (3,))), "tensor_names"),
        (bad.parts(shapes=()), "tensor_names"),
        (bad.parts(encode_params(bad.run.head, bad.model.params)[:-4]), "payload_size"),
        (bad.parts(bytes(2 * size), payload_bytes=2 * size), "payload_size"),  # float64
        ([good, *data, data[0]], "payload_size"),
        ([good], "payload_size"),
        (data, "malformed"),
        (bad.parts(examples=0), "examples"),
        (bad.parts(examples=2**32 - 1), "examples"),
        (bad.parts(examples=2**31 - 1), "too_many_examples"),
        (bad.parts(examples=1_000_001), "too_many_examples"),
    ]
    assert [bad.send(parts) for parts, _ in table] == [f"INVALID_ARGUMENT {code}" for _, code in table]
    header = messages.encode_update_header
    with pytest.raises(ValueError, match=r"range|Value"):  # the field is unsigned
        header(dataclasses.replace(messages.decode_update_part(good), examples=-1))
    assert model_after_one_round(harsh, [Sender(harsh, silo) for silo in "ab"]) == expected
    row = harsh.rounds()[0]
    assert (row["accepted"], row["refused"], row["examples"]) == (2, len(table), EXAMPLES["a"] + EXAMPLES["b"])


def test_denormal_and_negative_zero_values_are_accepted(start):
    federation = start(norm_times=0)
    sender = Sender(federation, "a")
    params = honest(sender.model.params, "a")
    params["0.bias"][:] = np.float32(1e-42)  # denormal
    params["1.bias"][0] = np.float32(-0.0)
    assert sender.send(sender.parts(params)) == "accepted"


def test_update_beyond_the_learnt_norm_bound_is_refused(start):
    """The bound is learnt from closed rounds; ten times the honest length is refused, twice passes."""
    federation = start(min_silos=3)
    with federation.client("a") as a, federation.client("b") as b, federation.client("c") as c:
        run = a.join()
        for number in (1, 2):
            for silo, client in (("a", a), ("b", b), ("c", c)):
                model = client.fetch(run, client.wait(run, number - 1, 20))
                client.submit(run, Update(number, model.sha256, os.urandom(16).hex(), 40, honest(model.params, silo)))
        model = a.fetch(run, a.wait(run, 2, 20))
        far, twice = honest(model.params, "a", 10.0), honest(model.params, "a", 2.0)
        with pytest.raises(DataError, match=r"4 times the median silo's farthest of the last 10 rounds"):
            a.submit(run, Update(3, model.sha256, "aa" * 16, 40, far))
        federation.stop()
        federation.start()  # the bound is in the database
    with federation.client("a") as a:
        with pytest.raises(DataError, match=r"4 times the median silo's farthest"):
            a.submit(run, Update(3, model.sha256, "bb" * 16, 40, far))
        a.submit(run, Update(3, model.sha256, "cc" * 16, 40, twice))
    assert federation.rounds()[2]["farthest"] == pytest.approx(2 * STEP * np.sqrt(53), rel=1e-3)


def test_three_strikes_quarantine_a_silo_until_the_operator_releases_it(start):
    federation = start(min_silos=2, quarantine_after=3, rounds=2)
    bad = Sender(federation, "c")
    errors = []
    with federation.client("c") as client:
        for index in range(3):
            with pytest.raises(DataError) as error:
                client.submit(bad.run, Update(1, bad.model.sha256, f"{index:032x}", 40, flipped(bad, 100.0)))
            errors.append(error.value)
        assert [error.code for error in errors] == ["norm"] * 3
        assert ["in quarantine" in error.message for error in errors] == [False, False, True]
        with pytest.raises(StaleUpdate, match="in quarantine") as error:
            client.submit(bad.run, Update(1, bad.model.sha256, "ff" * 16, 31, honest(bad.model.params, "c")))
        assert error.value.code == "quarantined"
        assert client.wait(bad.run, 0, 0.1).phase is Phase.WAIT  # it gets no work, and no round waits for it:
        for silo in "ab":
            sender = Sender(federation, silo)
            assert sender.send(sender.parts()) == "accepted"
        with federation.client("a") as other:
            assert other.wait(bad.run, 1, 20).round == 2
        now = status_of(federation.settings())
        assert [silo["quarantined"] is not None for silo in now["silos"]] == [False, False, True]
        assert any("silo release c" in line for line in status_lines(now))
        federation.stop()
        federation.start()
    with federation.client("c") as client:
        assert client.wait(bad.run, 1, 0.1).phase is Phase.WAIT  # a restart is no release
        released = CliRunner().invoke(main.app, ["silo", "release", "c", "--config", str(federation.config)])
        assert (released.exit_code, "out of quarantine" in released.output) == (0, True), released.output
        until = time.monotonic() + 10
        while (status := client.wait(bad.run, 1, 0.2)).phase is not Phase.OPEN and time.monotonic() < until:
            pass
        model = client.fetch(bad.run, status)
        client.submit(bad.run, Update(2, model.sha256, "ee" * 16, 31, honest(model.params, "c")))
    again = CliRunner().invoke(main.app, ["silo", "release", "c", "--config", str(federation.config)])
    assert again.exit_code == 65


def test_late_and_repeated_updates_are_no_strikes(start):
    federation = start(min_silos=3, quarantine_after=1)
    sender = Sender(federation, "a")
    parts = sender.parts()
    assert sender.send(sender.parts(round=9)) == "FAILED_PRECONDITION stale_round"
    assert sender.send(sender.parts(base_sha256="00" * 32)) == "FAILED_PRECONDITION stale_base"
    assert sender.send(sender.parts(payload_sha256="00" * 32)) == "DATA_LOSS payload_digest"
    assert [sender.send(parts), sender.send(parts)] == ["accepted", "accepted"]
    assert sender.send(sender.parts()) == "ALREADY_EXISTS already_answered"
    assert status_of(federation.settings())["silos"][0]["quarantined"] is None
