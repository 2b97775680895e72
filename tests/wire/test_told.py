"""Records travel by field name: what is unknown is passed over, what is missing has its default."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import InvalidRequest
from overspill.types.reply import Availability, ReceiptRecord
from overspill.types.route import (
    Plan,
    Route,
    RouteDecision,
    RouteReason,
    RouteTaken,
    StageReason,
)
from overspill.wire.told import from_json, to_json

text = st.text(max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
stages = st.builds(
    StageReason,
    stage=st.integers(0, 5),
    code=text,
    removed=st.lists(st.sampled_from(Route)).map(tuple),
    numbers=st.dictionaries(text, numbers, max_size=3),
    detail=text,
)
decisions = st.builds(
    RouteDecision,
    route=st.sampled_from(Route),
    reason=st.sampled_from(RouteReason),
    stages=st.lists(stages, max_size=3).map(tuple),
    p_device_right=st.none() | numbers,
    contributions=st.dictionaries(text, numbers, max_size=3),
)


@given(
    st.builds(
        RouteTaken,
        route=st.sampled_from(Route),
        reason=st.sampled_from(RouteReason),
        decision=decisions,
        model=text,
        changes=st.lists(text).map(tuple),
    )
)
def test_a_route_comes_back_as_it_was(taken):
    assert from_json(RouteTaken, to_json(taken)) == taken


def test_bytes_and_states_come_back_as_they_were():
    record = ReceiptRecord("i", "r", 1, "n", "NONE", b"\0\xff", b"", b"k", b"t", b"s")
    assert from_json(ReceiptRecord, to_json(record)) == record
    state = Availability("available", "why", "unavailable", "not set")
    assert from_json(Availability, to_json(state)).device.value == "available"


@dataclass(frozen=True)
class Newer:
    name: str
    added: tuple[str, ...] = ("new",)
    where: Path = field(default_factory=Path)


@dataclass(frozen=True)
class Older:
    name: str


def test_older_and_newer_sides_understand_each_other():
    assert from_json(Older, to_json(Newer("x", ("y",)))) == Older("x")
    assert from_json(Newer, to_json(Older("x"))) == Newer("x")


@pytest.mark.parametrize(
    "said",
    ["", "[]", "null", "{}", '{"decision": 3}', '{"route": "moon"}', "[" * 5000, '{"model": 3}'],
)
def test_what_is_no_such_record_is_an_invalid_request(said):
    with pytest.raises(InvalidRequest):
        from_json(Plan, said)


@given(st.recursive(st.none() | st.booleans() | numbers | text, st.lists, max_leaves=5))
def test_any_json_is_read_or_refused(value):
    for kind in (Plan, ReceiptRecord, Availability):
        with pytest.raises(InvalidRequest):
            from_json(kind, json.dumps(value))
