"""A wall clock that jumps during a round moves no deadline, is marked in the history, and certificates follow it."""

import datetime
import time

import pytest
from flamest.base.errors import IdentityError
from flamest.coordinator.admin.status import history_lines
from flamest.fedproto import tls
from flamest.fedproto.head import initial_params
from flamest.fedproto.records import Phase, Update

HOUR, YEAR = 3600.0, 365 * 86400.0


class Wall:
    """The wall clock of this process, moved by ``ahead`` seconds: time.time, and the dates of certificates."""

    def __init__(self, monkeypatch) -> None:
        self.ahead, real = 0.0, time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.ahead)


@pytest.fixture
def wall(monkeypatch):
    return Wall(monkeypatch)


def send(federation, silo: str, answered: int) -> None:
    with federation.client(silo) as client:
        run = client.join()
        status = client.wait(run, answered, 10)
        assert status.phase is Phase.OPEN
        update_id = f"{status.round:031x}{silo}"
        client.submit(run, Update(status.round, status.model_sha256, update_id, 5, initial_params(run.head, 1)))


def until(ready) -> None:
    give_up = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_clock_jump_moves_no_deadline_and_is_marked_in_history(make_federation, wall):
    """A year and an hour each way, and a second back."""
    federation = make_federation("a", "b", rounds=7, min_silos=2, deadline_s=300.0)
    federation.start()
    jumps = (HOUR, -HOUR, 0.3 * YEAR, -0.3 * YEAR, -1.0)
    for number, jump in enumerate(jumps, 1):
        send(federation, "a", number - 1)
        wall.ahead += jump
        time.sleep(0.5)  # the server has looked at its clock
        row = federation.rounds()[-1]
        assert (row["round"], row["status"], row["accepted"]) == (number, "open", 1)
        send(federation, "b", number - 1)
        until(lambda number=number: len(federation.rounds()) > number)
    rows = federation.rounds()[: len(jumps)]
    assert {row["status"] for row in rows} == {"closed"}
    assert all(0.0 <= row["seconds"] < 300.0 for row in rows)
    moved = [row["clock_moved"] for row in rows]
    assert [None if one is None else pytest.approx(one, abs=2.0) for one in moved] == [*jumps[:-1], None]
    assert "the clock moved by +3600 s" in history_lines(federation.rounds())[1].replace("+3599", "+3600")


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
def test_deadline_follows_the_monotonic_clock(make_federation, wall, monkeypatch, jump):
    monkeypatch.setattr(tls, "utc_now", lambda: datetime.datetime.now(datetime.UTC))
    federation = make_federation("a", "b", rounds=2, min_silos=2, deadline_s=2.0)
    federation.start()
    send(federation, "a", 0)
    wall.ahead += jump
    until(lambda: federation.rounds()[0]["status"] == "abandoned")
    assert 2.0 <= federation.rounds()[0]["seconds"] < 60.0


def test_certificates_follow_the_wall_clock(make_federation, wall):
    federation = make_federation("a", rounds=2)
    federation.start()
    with federation.client("a") as client:
        client.join()
        wall.ahead = 30 * YEAR
        with pytest.raises(IdentityError, match="expired") as refused:
            client.join()
        assert refused.value.code == "expired"
        wall.ahead = 0.0
        client.join()
