"""T18 and the gate: an identifier never stands for two updates, and nothing leaves that the ledger does not hold."""

import dataclasses
import os

import msgspec
import pytest
from flamest.agent.client import Backoff, CoordinatorClient, StaleUpdate
from flamest.agent.egress import guard
from flamest.agent.egress.accountant import Spend
from flamest.agent.egress.guard import EgressGuard
from flamest.agent.egress.ledger import LEDGER_FILE, read_ledger
from flamest.agent.egress.pending_update import FILE
from flamest.agent.egress.policy import FLOOR, Policy, PolicyRefused
from flamest.base.errors import InvariantError, StorageError
from flamest.base.files import sha256_bytes
from flamest.fedproto.codecs import encode_delta
from flamest.fedproto.head import initial_params
from flamest.fedproto.records import EncodedUpdate, Evaluation, Update
from flamest.fedproto.tensors import encode_params

DEFAULT = Policy()
OFTEN = Backoff(give_up_after_s=5.0, first_s=0.02, longest_s=0.1)


class Silo:
    """A silo's daemon as far as the gate and the link go; ``restarted`` is the next process in its state folder."""

    def __init__(self, federation, state, policy: Policy, before: "Silo | None" = None) -> None:
        settings = federation.connection_settings("a")
        self.state = state
        self.gate = EgressGuard.open(state, policy, "a", settings)
        self.link = CoordinatorClient.open(settings, retry=OFTEN, leaving=self.gate.leaving)
        self._federation = federation
        self.run = self.link.join()
        self.standing = before.standing if before else self.link.wait(self.run, 0, 5)
        self.model = before.model if before else self.link.fetch(self.run, self.standing)

    def restarted(self, policy: Policy) -> "Silo":
        self.link.close()
        return Silo(self._federation, self.state, policy, self)

    def made(self, seed: int, clips: int = 300, spend: Spend | None = None) -> Update:
        update = Update(
            self.standing.round,
            self.model.sha256,
            self.gate.update_id(self.run, self.model),
            self.gate.policy.rounded_count(clips),
            initial_params(self.run.head, seed),
            self.gate.policy.redact_evaluation(Evaluation(0.5, 6, 8)),
        )
        return self.gate.keep(self.run, update, clips, spend)


@pytest.fixture
def silo(make_federation, tmp_path):
    federation = make_federation("a", "b", rounds=3, min_silos=2, deadline_s=600.0)  # b is waited for
    federation.start()
    state = tmp_path / "agent-state"
    state.mkdir()
    made = []

    def make(policy: Policy = DEFAULT) -> Silo:
        made.append(Silo(federation, state, policy))
        return made[-1]

    yield make
    for each in made:
        each.link.close()


def dying(*_):
    raise KeyboardInterrupt


def ledger(silo: Silo, what: str = "update"):
    return list(read_ledger(silo.state).of(what))


def stored(silo: Silo) -> dict[str, str]:
    """SHA-256 of what the coordinator holds, by silo."""
    return {path.stem: sha256_bytes(path.read_bytes()) for path in silo._federation.state.rglob("*.f32")}


def test_an_update_is_in_the_ledger_with_everything_that_left(silo):
    first = silo()
    update = first.made(1)
    first.link.submit(first.run, update)
    (entry,) = ledger(first)
    payload = encode_params(first.run.head, update.params)
    assert (entry.run, entry.round, entry.update_id, entry.examples) == ("run-1", 1, update.update_id, 300)
    assert [(tensor.name, tensor.shape, tensor.dtype) for tensor in entry.tensors] == [
        (name, shape, "float32") for name, shape in first.run.head.shapes.items()
    ]
    assert entry.sha256 == sha256_bytes(payload) == stored(first)["a"]
    assert len(payload) < entry.bytes < len(payload) + 400
    assert entry.reported == {"loss": 0.5, "correct": 6.0, "count": 8.0}
    assert entry.overrides == ()
    (certificate,) = ledger(first, "enrolment")
    assert certificate.sha256 == sha256_bytes(first._federation.connection_settings("a").certificate.read_bytes())


def test_the_line_is_there_before_the_first_byte_is_sent(silo, monkeypatch):
    first = silo()
    update = first.made(1)
    seen = []

    def dead(self, header, payload):
        seen.append([entry.update_id for entry in ledger(first)])
        raise KeyboardInterrupt  # the process ends here

    monkeypatch.setattr(CoordinatorClient, "_submit_once", dead)
    with pytest.raises(KeyboardInterrupt):
        first.link.submit(first.run, update)
    assert seen == [[update.update_id]]


def test_nothing_leaves_when_the_ledger_cannot_be_written(silo):
    first = silo()
    update = first.made(1)
    (first.state / LEDGER_FILE).unlink()
    (first.state / LEDGER_FILE).mkdir()
    sent = first.link.sent_bytes
    with pytest.raises(StorageError, match="not sent"):
        first.link.submit(first.run, update)
    assert first.link.sent_bytes == sent


def test_an_update_that_the_gate_has_not_seen_does_not_leave(silo):
    first = silo()
    update = first.made(1)
    with pytest.raises(InvariantError, match="policy has not seen"):
        first.link.submit(first.run, dataclasses.replace(update, update_id="ab" * 16))
    assert ledger(first) == []


@pytest.mark.parametrize("sent", ["nothing", "all but the receipt"])
def test_t18_a_restart_with_the_same_policy_sends_the_very_same_update(silo, sent):
    """T18: the same identifier and bytes, whatever a second training would have come to."""
    first = silo(Policy(privacy="record-dp", report_evaluation=True))
    update = first.made(1, spend=Spend(0.5, 1.0, 10))
    if sent != "nothing":
        first.link.submit(first.run, update)
    again = first.restarted(first.gate.policy)
    resumed = again.gate.resume(again.run, again.model)
    assert resumed is not None
    assert (resumed.update_id, resumed.examples, resumed.evaluation) == (update.update_id, 300, update.evaluation)
    assert encode_params(again.run.head, resumed.params) == encode_params(again.run.head, update.params)
    receipt = again.link.submit(again.run, resumed)
    assert receipt.update_id == update.update_id
    assert stored(again) == {"a": ledger(again)[0].sha256}
    assert len({(entry.update_id, entry.sha256, entry.header_sha256) for entry in ledger(again)}) == 1
    assert again.gate.spends == (Spend(0.5, 1.0, 10),)  # spent once


CHANGES = {
    "more samples": {"min_samples": 512},
    "less told": {"report_evaluation": False},
    "noise": {"privacy": "clip"},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("arrived", [True, False])
def test_t18_a_restart_with_another_policy_withdraws_what_may_have_left(silo, change, arrived, monkeypatch):
    """T18: never two; whether the first one arrived the silo cannot know."""
    first = silo()
    update = first.made(1)
    if arrived:
        first.link.submit(first.run, update)
    else:
        monkeypatch.setattr(first.link, "_submit_once", dying)
        with pytest.raises(KeyboardInterrupt):
            first.link.submit(first.run, update)
    again = first.restarted(msgspec.structs.replace(Policy(), **CHANGES[change]))
    with pytest.raises(PolicyRefused) as error:
        again.gate.resume(again.run, again.model)
    assert (error.value.code, error.value.reason) == ("policy_refused", "withdrawn")
    again.gate.refuse(again.run, again.model, error.value)
    again.gate.refuse(again.run, again.model, error.value)
    assert [entry.round for entry in ledger(again, "withdrawn")] == [1]
    assert stored(again) == ({"a": ledger(again)[0].sha256} if arrived else {})


def test_t18_a_changed_policy_trains_anew_when_nothing_had_left(silo):
    """T18: the identifier is the same, and stands for one update still."""
    first = silo()
    first.made(1)
    again = first.restarted(Policy(report_evaluation=False))
    assert again.gate.resume(again.run, again.model) is None
    update = again.made(2)
    again.link.submit(again.run, update)
    assert [entry.update_id for entry in ledger(again)] == [update.update_id]
    assert stored(again) == {"a": ledger(again)[0].sha256}


def test_t18_other_bytes_under_an_identifier_that_left_do_not_leave(silo):
    """T18, should a kept file be lost and the clips have changed."""
    first = silo()
    first.link.submit(first.run, first.made(1))
    (first.state / FILE).unlink()
    again = first.restarted(Policy())
    assert again.gate.resume(again.run, again.model) is None  # training may come to the same
    other = again.made(2)
    sent = again.link.sent_bytes
    with pytest.raises(PolicyRefused) as error:
        again.link.submit(again.run, other)
    assert error.value.reason == "withdrawn"
    assert again.link.sent_bytes == sent
    assert len(ledger(again)) == 1


def test_a_lost_file_and_the_same_bytes_again_get_the_same_receipt(silo):
    """A coordinator that went back to a backup asks for a round whose file a later update has replaced."""
    first = silo()
    receipt = first.link.submit(first.run, first.made(1))
    (first.state / FILE).unlink()
    again = first.restarted(Policy())
    assert again.gate.resume(again.run, again.model) is None
    assert again.link.submit(again.run, again.made(1)) == receipt


def test_a_lost_file_of_an_update_with_noise_is_withdrawn(silo):
    noisy = Policy(privacy="clip")
    first = silo(noisy)
    first.link.submit(first.run, first.made(1))
    (first.state / FILE).unlink()
    again = first.restarted(noisy)
    with pytest.raises(PolicyRefused):
        again.gate.resume(again.run, again.model)


def test_the_coordinator_would_not_have_counted_two_either(silo):
    first = silo()
    first.link.submit(first.run, first.made(1))
    with CoordinatorClient.open(first._federation.connection_settings("a"), retry=OFTEN) as ungated:
        with pytest.raises(StaleUpdate):
            ungated.submit(first.run, dataclasses.replace(first.made(2), evaluation=None))


def test_a_damaged_file_is_not_sent(silo):
    first = silo()
    first.made(1)
    path = first.state / FILE
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    again = first.restarted(Policy())
    assert again.gate.resume(again.run, again.model) is None


def test_a_coded_update_comes_back_as_it_was(make_federation, tmp_path):
    federation = make_federation("a", "b", rounds=3, min_silos=2, codec='"int8"')
    federation.start()
    state = tmp_path / "agent-state"
    state.mkdir()
    silo = Silo(federation, state, Policy())
    delta = encode_delta("int8", silo.run.head, initial_params(silo.run.head, 7), silo.model.params, None)
    update = dataclasses.replace(silo.made(1), params=None, encoded=EncodedUpdate("int8", delta.payload, delta.error))
    silo.gate.keep(silo.run, update, 300, None)
    again = silo.restarted(Policy())
    resumed = again.gate.resume(again.run, again.model)
    assert resumed is not None
    assert resumed.params is None
    assert vars(resumed.encoded) == vars(update.encoded)
    again.link.submit(again.run, resumed)
    (entry,) = ledger(again)
    assert (entry.codec, {tensor.dtype for tensor in entry.tensors}) == ("int8", {"int8"})
    assert entry.sha256 == sha256_bytes(delta.payload)
    again.link.close()


def test_an_override_is_in_the_ledger_with_the_update_that_needed_it(silo):
    few = Policy(min_samples=4, min_samples_override=True)
    first = silo(few)
    first.link.submit(first.run, first.made(1, clips=FLOOR - 1))
    (entry,) = ledger(first)
    assert entry.overrides == ("min_samples 4 is below the floor of 256",)
    (in_force,) = ledger(first, "policy")
    assert in_force.policy["min_samples"] == 4
    assert in_force.overrides == entry.overrides
    first.restarted(few)
    assert len(ledger(first, "policy")) == 1
    first.restarted(Policy())
    assert [entry.policy["min_samples"] for entry in ledger(first, "policy")] == [4, FLOOR]


def test_telling_how_models_do_with_record_dp_is_in_the_ledger_and_in_the_log(silo, monkeypatch):
    said = []
    monkeypatch.setattr(guard.log, "warning", lambda event, **fields: said.append((event, fields)))
    telling = Policy(privacy="record-dp", report_evaluation=True)
    first = silo(telling)
    first.link.submit(first.run, first.made(1, spend=Spend(0.1, 1.0, 5)))
    (entry,), (in_force,) = ledger(first), ledger(first, "policy")
    assert entry.overrides == in_force.overrides == telling.overrides() != ()
    assert said == [("policy_override", {"what": telling.overrides()[0]})]


def test_counts_as_powers_of_two_are_what_the_ledger_and_the_coordinator_are_told(silo):
    first = silo(Policy(report_counts="power-of-two"))
    first.link.submit(first.run, first.made(1, clips=300))
    (entry,) = ledger(first)
    assert entry.examples == 256
    assert entry.overrides == ()  # 300 clips do stand behind it
    assert first._federation.rounds() == [] or first._federation.rounds()[0]["examples"] in (0, 256)


def test_what_the_budget_has_spent_is_read_from_the_ledger(silo):
    private = Policy(privacy="record-dp")
    first = silo(private)
    first.link.submit(first.run, first.made(1, spend=Spend(0.1, 1.0, 50)))
    again = first.restarted(private)
    assert again.gate.spends == (Spend(0.1, 1.0, 50),)
    assert again.gate.epsilon == pytest.approx(first.gate.epsilon)
    assert again.gate.epsilon > 0
    assert EgressGuard.open(again.state, Policy(), "a", again._federation.connection_settings("a")).epsilon is None


def test_the_kept_file_and_the_ledger_are_their_owners_alone(silo):
    first = silo()
    first.made(1)
    for name in (FILE, LEDGER_FILE):
        assert os.stat(first.state / name).st_mode & 0o077 == 0
