"""What a node says is closed, bound by its settings, and demanded by the policy."""

from __future__ import annotations

import json

import pytest

from overspill.errors import ConfigurationError, EvidenceRejected
from overspill.trust.closed import CLOSABLE, check_closed, closed_things
from overspill.trust.measured import Measured, MeasuredEntry, MeasuredLog, ModelsManifest
from overspill.trust.policy import parse_policy
from overspill.trust.reference import claims


def log_with(settings: bytes) -> MeasuredLog:
    kinds = (Measured.WHEEL, Measured.ENGINE, Measured.MODELS)
    others = tuple(
        MeasuredEntry(kind, "name", bytes(32), ModelsManifest(()).encode() if kind == 3 else b"")
        for kind in kinds
    )
    return MeasuredLog((*others, MeasuredEntry(Measured.CONFIG, "config", bytes(32), settings)))


def said(*names: str) -> MeasuredLog:
    return log_with(json.dumps({"closed": list(names)}).encode())


def test_what_is_demanded_has_to_be_said():
    check_closed(said("swap", "ptrace"), frozenset({"swap"}))
    with pytest.raises(EvidenceRejected) as caught:
        check_closed(said("swap"), frozenset({"swap", "ptrace", "kexec"}))
    assert (caught.value.reason, caught.value.step) == ("node_not_closed", "6")
    assert caught.value.expected == "a node that has closed kexec, ptrace"
    assert caught.value.actual == "one that says: swap"


@pytest.mark.parametrize(
    "settings",
    [b"", b"no json", b"[]", b"{}", b'{"closed":"swap"}', b'{"closed":[1]}', b"[" * 9000,
     b'{"closed":["swap"],"closed":["swap"]}'],
)  # fmt: skip
def test_settings_of_another_shape_say_nothing(settings):
    log = log_with(settings)
    assert closed_things(log) == ()
    check_closed(log, frozenset())
    with pytest.raises(EvidenceRejected, match="says: nothing"):
        check_closed(log, frozenset({"swap"}))


def test_it_is_among_the_claims():
    assert claims(said("swap", "kexec"))["closed"] == "kexec, swap"
    assert "closed" not in claims(said())


TEXT = """
version = 1
min_assurance = "SOFTWARE"
accept = ["pinned-operator"]
freshness = "nonce"
{closed}
[reference]
models = {{ river = "{digest}" }}
[pinned-operator]
keys = ["{digest}"]
"""


def policy(closed: str):
    return parse_policy(TEXT.format(closed=closed, digest="ab" * 32))


def test_a_policy_lists_what_it_demands():
    assert policy("").closed == frozenset()
    assert policy(f"closed = {json.dumps(list(CLOSABLE))}").closed == frozenset(CLOSABLE)


@pytest.mark.parametrize("closed", ["closed = []", 'closed = ["doors"]', "closed = true"])
def test_an_empty_or_unknown_demand_is_an_error(closed):
    with pytest.raises(ConfigurationError, match="'closed'"):
        policy(closed)
