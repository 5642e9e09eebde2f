"""One agent per identity: the decision with times as arguments, the refusal over the real wire."""

import itertools

import pytest
from flamest.agent.client import DuplicateIdentity
from flamest.agent.identity import agent_instance
from flamest.coordinator.serving.limits import LEASE_S, Leases
from flamest.fedproto.records import Phase, Update

ONE, TWO = "0a" * 16, "0b" * 16


def test_first_agent_holds_its_identity_until_silent_for_a_lease():
    leases = Leases()
    assert leases.take("a", ONE, 0.0, 20.0)
    assert not leases.take("a", TWO, 1.0, 20.0)
    assert leases.take("b", TWO, 1.0, 20.0)  # another silo
    assert leases.take("a", ONE, 15.0, 20.0)  # it continues
    assert not leases.take("a", TWO, 15.0 + 20.0 + LEASE_S - 0.1, 20.0)
    assert leases.take("a", TWO, 15.0 + 20.0 + LEASE_S, 20.0)
    assert not leases.take("a", ONE, 15.0 + 20.0 + LEASE_S + 1.0, 20.0)


def test_two_agents_that_keep_asking_alternate_at_most_once_a_lease():
    leases, holder, switches = Leases(), "", []
    for second in range(600):
        for instance, awake in ((ONE, second % 200 < 100), (TWO, True)):
            if awake and leases.take("a", instance, float(second), 0.0) and instance != holder:
                holder, switches = instance, [*switches, second]
    assert all(later - sooner >= LEASE_S for sooner, later in itertools.pairwise(switches))
    assert len(switches) == 2  # to the first one, and to the second when the first went away


def test_agent_without_instance_is_not_refused_and_holds_no_lease():
    leases = Leases()
    assert leases.take("a", "", 0.0, 20.0)
    assert leases.take("a", ONE, 1.0, 20.0)
    assert leases.take("a", "", 2.0, 20.0)


def test_restarted_agent_keeps_its_instance_a_copied_machine_gets_another(tmp_path):
    boot = tmp_path / "boot_id"
    boot.write_text("first\n")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    mine = agent_instance(tmp_path / "one", boot)
    assert agent_instance(tmp_path / "one", boot) == mine
    assert agent_instance(tmp_path / "two", boot) != mine
    (tmp_path / "two" / "instance").write_bytes((tmp_path / "one" / "instance").read_bytes())
    assert agent_instance(tmp_path / "two", boot) == mine  # on one machine the folder's lock keeps them apart
    boot.write_text("second\n")
    assert agent_instance(tmp_path / "two", boot) != mine
    assert len(mine) == 32


@pytest.fixture
def federation(make_federation):
    federation = make_federation("a", "b", rounds=3, min_silos=2)
    federation.start()
    return federation


def test_second_agent_of_an_identity_is_refused_and_the_refusal_counted(federation):
    """One update in a round; the second agent gets the reason; the history counts the refusals."""
    with federation.client("a") as first, federation.client("a") as second, federation.client("b") as other:
        run = first.join()
        status = first.wait(run, 0, 5, instance=ONE)
        assert status.phase is Phase.OPEN
        for _ in range(3):
            with pytest.raises(DuplicateIdentity, match="another agent speaks for silo 'a'") as refused:
                second.wait(run, 0, 0.1, instance=TWO)
        assert "enrol this one" in refused.value.fix
        for client, name in ((first, "1"), (other, "2")):
            model = client.fetch(run, status)
            client.submit(run, Update(1, model.sha256, name * 32, 5, model.params))
        assert first.wait(run, 1, 5, instance=ONE).round == 2
        with pytest.raises(DuplicateIdentity):
            second.wait(run, 0, 0.1, instance=TWO)
    rows = federation.rounds()
    assert [row["accepted"] for row in rows] == [2, 0]
    assert [row["refused"] for row in rows] == [3, 1]


def test_restarted_coordinator_has_no_leases(federation):
    with federation.client("a") as client:
        run = client.join()
        client.wait(run, 0, 5, instance=ONE)
    federation.stop()
    federation.start()
    with federation.client("a") as client:
        assert client.wait(run, 0, 5, instance=TWO).phase is Phase.OPEN
