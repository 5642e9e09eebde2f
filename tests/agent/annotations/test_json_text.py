"""JSON of other tools: what is repeated in it, and its limits."""

from __future__ import annotations

import pytest
from flamest.agent.annotations import json_text
from flamest.agent.annotations.json_text import RepeatedKeys, decode_json
from flamest.base.errors import DataError


class Name(str):
    """A key that counts how often it is compared."""

    compared = 0

    def __eq__(self, other):
        Name.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


@pytest.mark.parametrize("keys", [2, 999, 5000])
def test_keys_that_come_twice_are_found_in_one_pass(keys):
    Name.compared = 0
    names = [Name(number % (keys - 1)) for number in range(keys)]
    assert RepeatedKeys([(name, 0) for name in names]).repeated == ["0"]
    assert Name.compared < 20 * keys


def test_a_flat_list_has_a_limit_too(monkeypatch):
    monkeypatch.setattr(json_text, "MAX_COMMAS", 100)
    assert decode_json(b"[" + b"1," * 100 + b"1]", "a.json") == [1] * 101
    with pytest.raises(DataError) as raised:
        decode_json(b"[" + b"1," * 101 + b"1]", "a.json")
    assert raised.value.code == "too_large"
