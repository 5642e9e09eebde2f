"""The egress guard: an identifier never refers to two updates, and nothing leaves that the ledger does not hold."""

import dataclasses
import os

import msgspec
import pytest
from flamest.agent.client import Backoff, CoordinatorClient, StaleUpdate, UpdateMessage
from flamest.agent.egress import guard
from flamest.agent.egress.accountant import Spend
from flamest.agent.egress.guard import EgressGuard
from flamest.agent.egress.ledger import LEDGER_FILE, read_ledger
from flamest.agent.egress.pending_update import PENDING_FILE, PendingUpdate
from flamest.agent.egress.policy import MIN_SAMPLES_FLOOR, Policy, PolicyRefused
from flamest.base.errors import InvariantError, StorageError
from flamest.base.files import sha256_bytes
from flamest.fedproto.codecs import encode_delta
from flamest.fedproto.head import initial_params
from flamest.fedproto.records import EncodedUpdate, Evaluation, Receipt, Update
from flamest.fedproto.tensors import encode_params

DEFAULT = Policy()
OFTEN = Backoff(give_up_after_s=5.0, first_s=0.02, longest_s=0.1)


class Silo:
    """A silo's guard and client; ``restarted`` is the next process in the same state folder."""

    def __init__(self, federation, state, policy: Policy, before: "Silo | None" = None) -> None:
        settings = federation.connection_settings("a")
        self.state = state
        self.guard = EgressGuard.open(state, policy, "a", settings)
        self.client = CoordinatorClient.open(settings, retry=OFTEN)
        self.federation = federation
        self.run = self.client.join()
        self.task = before.task if before else self.client.wait(self.run, 0, 5)
        self.model = before.model if before else self.client.fetch(self.run, self.task)

    def restarted(self, policy: Policy) -> "Silo":
        self.client.close()
        return Silo(self.federation, self.state, policy, self)

    def trained(self, seed: int, clips: int = 300, spend: Spend | None = None) -> PendingUpdate:
        """An update as if trained: the parameters follow from ``seed``."""
        policy = self.guard.policy
        update = Update(
            self.task.round,
            self.model.sha256,
            self.guard.update_id(self.run, self.task.round, self.model.sha256),
            policy.rounded_count(clips),
            initial_params(self.run.head, seed),
            Evaluation(0.5, 48, 64) if policy.reports else None,
        )
        return PendingUpdate(self.run.sha256, policy.sha256, clips, spend, update)

    def pending(self) -> PendingUpdate | None:
        return self.guard.pending(self.run, self.model)

    def send(self, pending: PendingUpdate, client=None) -> Receipt:
        return self.guard.send(client or self.client, self.run, pending)


@pytest.fixture
def silo(make_federation, tmp_path):
    federation = make_federation("a", "b", rounds=3, min_silos=2, deadline_s=600.0)  # b is waited for
    federation.start()
    state = tmp_path / "agent-state"
    state.mkdir()
    silos = []

    def make(policy: Policy = DEFAULT) -> Silo:
        silos.append(Silo(federation, state, policy))
        return silos[-1]

    yield make
    for each in silos:
        each.client.close()


class CrashingClient:
    """In place of a client: the process dies at the first byte that is sent."""

    def __init__(self, on_send=lambda: None) -> None:
        self._on_send = on_send

    def send_update(self, _: UpdateMessage) -> Receipt:
        self._on_send()
        raise KeyboardInterrupt


def crash_before_the_ledger(silo: Silo, pending: PendingUpdate) -> None:
    """Send with a ledger that cannot be written: the update's file stays, and nothing leaves."""
    ledger_file, aside = silo.state / LEDGER_FILE, silo.state / "aside"
    ledger_file.rename(aside)
    ledger_file.mkdir()
    with pytest.raises(StorageError, match="not sent"):
        silo.send(pending)
    ledger_file.rmdir()
    aside.rename(ledger_file)


def ledger(silo: Silo, what: str = "update"):
    return list(read_ledger(silo.state).of(what))


def stored(silo: Silo) -> dict[str, str]:
    """SHA-256 of each update that the coordinator holds, by silo."""
    return {path.stem: sha256_bytes(path.read_bytes()) for path in silo.federation.state.rglob("*.f32")}


def test_the_ledger_holds_everything_about_an_update_that_left(silo):
    first = silo()
    update = first.trained(1).update
    first.send(first.trained(1))
    (entry,) = ledger(first)
    payload = encode_params(first.run.head, update.params)
    assert (entry.run, entry.round, entry.update_id, entry.examples) == ("run-1", 1, update.update_id, 300)
    assert [(tensor.name, tensor.shape, tensor.dtype) for tensor in entry.tensors] == [
        (name, shape, "float32") for name, shape in first.run.head.shapes.items()
    ]
    assert entry.sha256 == sha256_bytes(payload) == stored(first)["a"]
    assert len(payload) < entry.bytes < len(payload) + 400
    assert entry.reported == {"loss": 0.5, "correct": 48.0, "count": 64.0}
    assert entry.overrides == ()
    (certificate,) = ledger(first, "enrolment")
    shown = first.federation.connection_settings("a").certificate.read_bytes()
    assert certificate.sha256 == sha256_bytes(shown)


def test_the_ledgers_line_is_written_before_the_first_byte_is_sent(silo):
    first = silo()
    pending = first.trained(1)
    seen = []
    client = CrashingClient(lambda: seen.append([entry.update_id for entry in ledger(first)]))
    with pytest.raises(KeyboardInterrupt):
        first.send(pending, client)
    assert seen == [[pending.update.update_id]]


def test_nothing_is_sent_when_the_ledger_cannot_be_written(silo):
    first = silo()
    sent = first.client.sent_bytes
    crash_before_the_ledger(first, first.trained(1))
    assert first.client.sent_bytes == sent
    assert stored(first) == {}


@pytest.mark.parametrize("change", ["identifier", "run", "policy"])
def test_an_update_made_for_something_else_is_not_sent(silo, change):
    first = silo()
    pending = first.trained(1)
    pending = {
        "identifier": dataclasses.replace(pending, update=dataclasses.replace(pending.update, update_id="ab" * 16)),
        "run": dataclasses.replace(pending, run_sha256="00" * 32),
        "policy": dataclasses.replace(pending, policy_sha256="00" * 32),
    }[change]
    with pytest.raises(InvariantError, match="not made for this run under this policy"):
        first.send(pending)
    assert ledger(first) == []


def test_an_update_of_too_few_clips_is_not_sent(silo):
    first = silo()
    with pytest.raises(PolicyRefused) as error:
        first.send(first.trained(1, clips=MIN_SAMPLES_FLOOR - 1))
    assert error.value.reason == "few_samples"
    assert ledger(first) == []


@pytest.mark.parametrize("sent", ["nothing", "all but the receipt"])
def test_a_restart_with_the_same_policy_sends_the_same_bytes(silo, sent):
    """Whatever a second training would give."""
    first = silo(Policy(privacy="record-dp", report_evaluation=True))
    pending = first.trained(1, spend=Spend(0.5, 1.0, 10))
    if sent == "nothing":
        crash_before_the_ledger(first, pending)
    else:
        first.send(pending)
    second = first.restarted(first.guard.policy)
    resumed = second.pending()
    assert resumed is not None
    assert (resumed.update.update_id, resumed.update.examples) == (pending.update.update_id, 300)
    assert resumed.update.evaluation == pending.update.evaluation
    head = second.run.head
    assert encode_params(head, resumed.update.params) == encode_params(head, pending.update.params)
    receipt = second.send(resumed)
    assert receipt.update_id == pending.update.update_id
    assert stored(second) == {"a": ledger(second)[0].sha256}
    assert len({(entry.update_id, entry.sha256, entry.header_sha256) for entry in ledger(second)}) == 1
    assert len(ledger(second)) == (1 if sent == "nothing" else 2)  # one line for each sending
    assert second.guard.spends == (Spend(0.5, 1.0, 10),)  # spent once


def test_sending_again_does_not_write_the_updates_file_again(silo):
    first = silo()
    first.send(first.trained(1))
    written = (first.state / PENDING_FILE).stat()
    second = first.restarted(DEFAULT)
    second.send(second.pending())
    assert (second.state / PENDING_FILE).stat().st_ino == written.st_ino


CHANGES = {
    "more samples": {"min_samples": 512},
    "no evaluation": {"report_evaluation": False},
    "noise": {"privacy": "clip"},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("arrived", [True, False])
def test_a_restart_with_another_policy_withdraws_what_may_have_left(silo, change, arrived):
    """The silo cannot know whether the first update arrived."""
    first = silo()
    if arrived:
        first.send(first.trained(1))
    else:
        with pytest.raises(KeyboardInterrupt):
            first.send(first.trained(1), CrashingClient())
    second = first.restarted(msgspec.structs.replace(Policy(), **CHANGES[change]))
    with pytest.raises(PolicyRefused) as error:
        second.pending()
    assert (error.value.code, error.value.reason) == ("policy_refused", "withdrawn")
    second.guard.record_refusal(second.run, second.model, error.value)
    second.guard.record_refusal(second.run, second.model, error.value)
    assert [entry.round for entry in ledger(second, "withdrawn")] == [1]
    assert stored(second) == ({"a": ledger(second)[0].sha256} if arrived else {})


def test_a_changed_policy_trains_again_when_nothing_had_left(silo):
    """The identifier is the same, and still refers to one update."""
    first = silo()
    crash_before_the_ledger(first, first.trained(1))
    second = first.restarted(Policy(report_evaluation=False))
    assert second.pending() is None
    pending = second.trained(2)
    second.send(pending)
    assert [entry.update_id for entry in ledger(second)] == [pending.update.update_id]
    assert stored(second) == {"a": ledger(second)[0].sha256}


def test_other_bytes_under_an_identifier_that_left_are_not_sent(silo):
    """The case of a lost file whose clips have changed."""
    first = silo()
    first.send(first.trained(1))
    (first.state / PENDING_FILE).unlink()
    second = first.restarted(Policy())
    assert second.pending() is None  # training again may give the same bytes
    sent = second.client.sent_bytes
    with pytest.raises(PolicyRefused) as error:
        second.send(second.trained(2))
    assert error.value.reason == "withdrawn"
    assert second.client.sent_bytes == sent
    assert len(ledger(second)) == 1


def test_the_same_bytes_after_a_lost_file_get_the_same_receipt(silo):
    """A coordinator restored from a backup asks for a round whose file a later update has replaced."""
    first = silo()
    receipt = first.send(first.trained(1))
    (first.state / PENDING_FILE).unlink()
    second = first.restarted(Policy())
    assert second.pending() is None
    assert second.send(second.trained(1)) == receipt


def test_a_lost_file_of_an_update_with_noise_is_withdrawn(silo):
    noisy = Policy(privacy="clip")
    first = silo(noisy)
    first.send(first.trained(1))
    (first.state / PENDING_FILE).unlink()
    second = first.restarted(noisy)
    with pytest.raises(PolicyRefused):
        second.pending()


def test_the_coordinator_counts_one_update_of_an_identifier(silo):
    first = silo()
    first.send(first.trained(1))
    with first.federation.client("a") as unguarded:
        with pytest.raises(StaleUpdate):
            unguarded.submit(first.run, dataclasses.replace(first.trained(2).update, evaluation=None))


def test_a_damaged_file_is_not_sent(silo):
    first = silo()
    crash_before_the_ledger(first, first.trained(1))
    path = first.state / PENDING_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert first.restarted(Policy()).pending() is None


def test_a_restart_sends_a_coded_update_as_it_was(make_federation, tmp_path):
    federation = make_federation("a", "b", rounds=3, min_silos=2, codec='"int8"')
    federation.start()
    state = tmp_path / "agent-state"
    state.mkdir()
    first = Silo(federation, state, Policy())
    delta = encode_delta("int8", first.run.head, initial_params(first.run.head, 7), first.model.params, None)
    pending = first.trained(1)
    update = dataclasses.replace(pending.update, params=None, encoded=EncodedUpdate("int8", delta.payload, delta.error))
    crash_before_the_ledger(first, dataclasses.replace(pending, update=update))
    second = first.restarted(Policy())
    resumed = second.pending()
    assert resumed is not None
    assert resumed.update.params is None
    assert vars(resumed.update.encoded) == vars(update.encoded)
    second.send(resumed)
    (entry,) = ledger(second)
    assert (entry.codec, {tensor.dtype for tensor in entry.tensors}) == ("int8", {"int8"})
    assert entry.sha256 == sha256_bytes(delta.payload)
    second.client.close()


def test_an_override_is_in_the_ledger_with_the_update_that_needed_it(silo):
    few = Policy(min_samples=4, min_samples_override=True)
    first = silo(few)
    first.send(first.trained(1, clips=MIN_SAMPLES_FLOOR - 1))
    (entry,) = ledger(first)
    assert entry.overrides == ("min_samples 4 is below the floor of 256",)
    (in_force,) = ledger(first, "policy")
    assert in_force.policy["min_samples"] == 4
    assert in_force.overrides == entry.overrides
    first.restarted(few)
    assert len(ledger(first, "policy")) == 1
    first.restarted(Policy())
    assert [entry.policy["min_samples"] for entry in ledger(first, "policy")] == [4, MIN_SAMPLES_FLOOR]


def test_reporting_evaluations_with_record_dp_is_in_ledger_and_log(silo, monkeypatch):
    warnings = []
    monkeypatch.setattr(guard.log, "warning", lambda event, **fields: warnings.append((event, fields)))
    reporting = Policy(privacy="record-dp", report_evaluation=True)
    first = silo(reporting)
    first.send(first.trained(1, spend=Spend(0.1, 1.0, 5)))
    (entry,), (in_force,) = ledger(first), ledger(first, "policy")
    assert entry.overrides == in_force.overrides == reporting.overrides() != ()
    assert warnings == [("policy_override", {"what": reporting.overrides()[0]})]


def test_ledger_and_coordinator_get_counts_as_powers_of_two(silo):
    first = silo(Policy(report_counts="power-of-two"))
    first.send(first.trained(1, clips=300))
    (entry,) = ledger(first)
    assert entry.examples == 256
    assert entry.overrides == ()  # it was trained on 300 clips
    assert first.federation.rounds() == [] or first.federation.rounds()[0]["examples"] in (0, 256)


def test_the_privacy_spent_is_read_from_the_ledger(silo):
    private = Policy(privacy="record-dp")
    first = silo(private)
    first.send(first.trained(1, spend=Spend(0.1, 1.0, 50)))
    second = first.restarted(private)
    assert second.guard.spends == (Spend(0.1, 1.0, 50),)
    assert second.guard.epsilon == pytest.approx(first.guard.epsilon)
    assert second.guard.epsilon > 0
    connection = second.federation.connection_settings("a")
    assert EgressGuard.open(second.state, Policy(), "a", connection).epsilon is None


def test_only_the_owner_can_read_ledger_and_pending_update(silo):
    first = silo()
    first.send(first.trained(1))
    for name in (PENDING_FILE, LEDGER_FILE):
        assert os.stat(first.state / name).st_mode & 0o077 == 0


def test_what_left_is_known_after_a_restart(silo):
    first = silo(DEFAULT)
    assert (first.guard.updates, first.guard.update_bytes, first.guard.last_round(first.run)) == (0, 0, 0)
    first.send(first.trained(1))
    later = first.restarted(DEFAULT).guard
    assert (later.updates, later.last_round(first.run)) == (1, 1)
    assert later.update_bytes == next(read_ledger(first.state).of("update")).bytes
