"""Which replica is asked next, and when it is worth waiting for one."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from overspill.errors import BusyError
from overspill.picking import pick
from overspill.transport.guard import Guard, GuardOptions

pytestmark = pytest.mark.anyio
QUICK_S, PATIENT_S = 0.15, 1.5


def node(
    name: str, *, failures: int = 0, refusals: int = 0, rest_s: float = PATIENT_S
) -> SimpleNamespace:
    options = GuardOptions(min_open_s=rest_s, max_open_s=rest_s)
    guard = Guard(options, time.monotonic, draw=lambda: 1.0)  # the throttle refuses nobody
    for _ in range(failures):
        guard.failed()
    for _ in range(refusals):
        guard.refused()
    return SimpleNamespace(address=name, guard=guard)


async def test_the_first_that_did_not_fail_yet_is_asked_and_a_resting_one_is_passed_over() -> None:
    first, second, third = node("a"), node("b", failures=5), node("c")
    assert await pick(lambda: [first, second, third], [], wait_s=0) is first
    assert await pick(lambda: [first, second, third], [first], wait_s=0) is third


async def test_a_fleet_whose_nodes_are_gone_is_waited_for_until_one_may_be_asked_again() -> None:
    fleet = [node(name, failures=5, rest_s=QUICK_S) for name in "ab"]
    assert await pick(lambda: fleet, [], wait_s=5) in fleet


async def test_one_that_is_back_takes_who_waited() -> None:
    back, gone = (node(name, failures=5, rest_s=QUICK_S) for name in "ab")
    assert await pick(lambda: [back, gone], [], wait_s=5)  # one probe is on its way, and tells
    back.guard.accepted()
    assert await pick(lambda: [back, gone], [], wait_s=0) is back


async def test_a_node_that_is_learnt_of_meanwhile_takes_who_waits() -> None:
    gone, busy = [node(name, failures=9) for name in "ab"], node("c", refusals=20)
    for one in gone:
        one.guard.allow()  # its probe is on its way
    newcomer, looks = node("d"), 0

    def known() -> list[SimpleNamespace]:
        nonlocal looks
        looks += 1
        return [busy, newcomer] if looks > 2 else [busy, *gone]

    assert await pick(known, [], wait_s=5) is newcomer
    assert looks == 3


async def test_the_wait_has_an_end_and_nothing_is_sent() -> None:
    fleet = [node("a", failures=9), node("b", failures=9)]
    asked = [(await pick(lambda: fleet, [], wait_s=5)).address for _ in fleet]
    assert sorted(asked) == ["a", "b"]
    with pytest.raises(BusyError, match="a and 1 more refused or failed") as caught:
        await pick(lambda: fleet, [], wait_s=0.06)
    assert caught.value.reason == "THROTTLED"


@pytest.mark.parametrize(
    "fleet",
    [
        [node("a", failures=5)],
        [node("a", refusals=20), node("b", refusals=20)],
    ],
    ids=["alone", "without room"],
)
async def test_nobody_waits_where_that_would_not_help(
    fleet: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sleep(_: float) -> None:
        raise AssertionError("waited")

    monkeypatch.setattr("overspill.picking.anyio.sleep", sleep)
    for one in fleet:
        one.guard.failed() if len(fleet) == 1 else one.guard.refused()
    with pytest.raises(BusyError):
        await pick(lambda: fleet, [], wait_s=60)
