"""A silo with too few clips stands aside until its store changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from flamest.agent.egress.policy import Policy, PolicyRefused
from flamest.agent.standing_aside import ALL_ROUNDS, StandingAside, store_state
from flamest.agent.status import AgentStatus, StatusNotes
from flamest.fedproto.head import HeadSpec
from flamest.fedproto.records import RunSettings

RUN = RunSettings("r", ("fall", "walk"), HeadSpec(4, 2, ()), 9, 1, 9.0, "f")
OTHER_RUN = RunSettings("s", ("fall", "walk"), HeadSpec(4, 2, ()), 9, 1, 9.0, "f")


def too_few() -> PolicyRefused:
    with pytest.raises(PolicyRefused) as refused:
        Policy().require_samples(100)
    return refused.value


def standing(store: Path, policy: Policy = Policy()) -> StandingAside:  # noqa: B008 - a frozen record
    store.write_bytes(b"a store")
    aside = StandingAside(store, policy)
    aside.look()
    aside.begin(RUN, too_few())
    return aside


def test_it_declines_every_round_of_that_run_and_of_no_other(tmp_path: Path) -> None:
    aside = standing(tmp_path / "store")
    assert aside.answered(RUN, 3) == ALL_ROUNDS
    assert aside.answered(OTHER_RUN, 3) == 3
    assert not aside.has_ended(RUN)


@pytest.mark.parametrize("file", ["store", "store-wal"])
def test_new_clips_end_it_once_and_the_round_is_looked_at_again(tmp_path: Path, file: str) -> None:
    aside = standing(tmp_path / "store")
    (tmp_path / file).write_bytes(b"a store with more clips")
    assert aside.answered(RUN, 3) == 3
    assert aside.has_ended(RUN)
    assert not aside.has_ended(RUN)


def test_an_empty_log_that_a_reader_leaves_is_no_change(tmp_path: Path) -> None:
    aside = standing(tmp_path / "store")
    (tmp_path / "store-wal").touch()
    assert aside.refusal(RUN) is not None


def test_other_refusals_do_not_begin_it(tmp_path: Path) -> None:
    aside = standing(tmp_path / "store")
    aside.begin(RUN, PolicyRefused("spent", reason="budget_spent"))
    assert aside.refusal(RUN) is None
    assert aside.at_end(RUN) == ""


@pytest.mark.parametrize(
    ("adopt", "words"),
    [(None, "it is used, and compared"), ("auto", "the better of it and"), ("own", "trained on its own clips is used")],
)
def test_the_status_says_what_the_silo_gets_instead(tmp_path: Path, adopt, words: str) -> None:
    aside = standing(tmp_path / "store", Policy(adopt=adopt))
    notes = StatusNotes(tmp_path, AgentStatus())
    assert not aside.show(OTHER_RUN, notes)
    assert aside.show(RUN, notes)
    assert (notes.status.doing, notes.status.code) == ("standing_aside", "policy_refused")
    assert "100 labelled clips to train on, this silo's policy asks for 256" in notes.status.detail
    assert words in notes.status.detail
    assert "stood aside" in aside.at_end(RUN)


def test_a_store_that_is_not_there_has_no_state(tmp_path: Path) -> None:
    assert store_state(tmp_path / "none") == ()
