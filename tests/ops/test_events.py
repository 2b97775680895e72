"""The log's events by their types: a list of what may be said, and no field for anything else."""

from __future__ import annotations

import typing
from dataclasses import fields

import pytest

from overspill_cloud import events

EVENTS = typing.get_args(events.LogEvent)
WORDS = {
    "release", "assurance", "nkc_sha256", "outcome", "model", "code", "reason", "kind", "where",
}  # fmt: skip
"""Fields that hold text: operators' names, digests, and words of our own."""
COUNTS = {"lines"}
"""Exact numbers, of what is the node's own and nobody's request."""
LISTS = {"models", "stated"}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
def test_no_field_can_hold_what_a_client_sent(event: type) -> None:
    kinds = typing.get_type_hints(event)
    for field in fields(event):
        kind = kinds[field.name]
        if kind is str:
            assert field.name in WORDS
        elif kind == tuple[str, ...]:
            assert field.name in LISTS
        elif kind is int:
            is_edge = field.name.endswith("_le")
            assert is_edge or field.name in COUNTS, "a number is a bucket's edge"
        else:
            assert kind is bool


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
def test_no_event_names_a_device_beside_anything(event: type) -> None:
    names = {field.name for field in fields(event)}
    assert not names & {"device", "thumbprint", "request_id", "stream_id", "address", "peer"}
