"""Quotas: leased, spent without the database, and never drifting from the ledger."""

from __future__ import annotations

import secrets
from contextlib import closing

import pytest

from overspill.errors import BusyError
from overspill_cloud.database import Database
from overspill_cloud.limits import QuotaTerms
from overspill_cloud.quota import Quotas
from overspill_cloud.store import Device, Lease, UsageEntry, open_backend
from overspill_cloud.store.check import check

pytestmark = pytest.mark.anyio

DAY = 86_400
NOW = 100 * DAY + 1000
TERMS = QuotaTerms(lease_tokens=100, lease_ttl_s=60)
DEVICE = Device(b"t" * 32, b"der", "laptop", 10, 1 << 40)
ACCOUNT = DEVICE.account
PERIOD = TERMS.period_of(NOW)


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


def entry(lease: bytes | None, tokens: int) -> UsageEntry:
    ids = {"account": ACCOUNT, "period_unix": PERIOD, "lease": lease}
    return UsageEntry(secrets.token_bytes(16), 0, ACCOUNT, NOW, "m", tokens, 0, "stop", **ids)


def test_a_lease_takes_what_is_asked_or_a_share_and_says_what_is_left(store):
    first = store.lease(ACCOUNT, 1000, 10, TERMS, NOW)
    assert first.tokens == 100
    assert store.lease(ACCOUNT, 1000, 300, TERMS, NOW).tokens == 300
    assert store.lease(ACCOUNT, 1000, 601, TERMS, NOW) == 600
    assert store.leased(ACCOUNT, PERIOD, NOW) == 400


def test_the_last_tokens_are_not_held_by_who_does_not_need_them(store):
    assert store.lease(ACCOUNT, 40, 1, TERMS, NOW).tokens == 10
    assert store.lease(ACCOUNT, 40, 1, TERMS, NOW).tokens == 7


def test_a_lease_is_topped_up_under_its_name(store):
    first = store.lease(ACCOUNT, 1000, 10, TERMS, NOW)
    more = store.lease(ACCOUNT, 1000, 10, TERMS, NOW + 30, first)
    assert more.lease_id == first.lease_id
    assert more.expires_unix == NOW + 90
    assert store.leased(ACCOUNT, PERIOD, NOW + 89) == 200


def test_what_ended_is_not_added_to(store):
    first = store.lease(ACCOUNT, 1000, 10, TERMS, NOW)
    again = store.lease(ACCOUNT, 1000, 10, TERMS, NOW + 61, first)
    assert store.leased(ACCOUNT, PERIOD, NOW + 61) == again.tokens == 100


def test_usage_moves_from_the_lease_to_what_is_spent(store):
    lease = store.lease(ACCOUNT, 1000, 100, TERMS, NOW)
    line = entry(lease.lease_id, 30)
    store.append_usage(line)
    store.append_usage(line)  # the same attempt is charged once
    assert store.spent(ACCOUNT, PERIOD) == 30
    assert store.leased(ACCOUNT, PERIOD, NOW) == 70
    store.append_usage(entry(lease.lease_id, 200))  # more than its estimate: no lease owes
    assert store.spent(ACCOUNT, PERIOD) == 230
    assert store.leased(ACCOUNT, PERIOD, NOW) == 0


def test_a_replica_that_died_leaves_nothing_once_its_leases_end(open_store):
    dead, alive = open_store(), open_store()
    lease = dead.lease(ACCOUNT, 1000, 900, TERMS, NOW)
    dead.append_usage(entry(lease.lease_id, 50))
    dead.close()
    assert alive.lease(ACCOUNT, 1000, 200, TERMS, NOW + 59) == 100
    assert alive.lease(ACCOUNT, 1000, 950, TERMS, NOW + 60).tokens == 950
    assert alive.prune_leases(NOW + 60) == 1


def test_a_renewed_lease_goes_on_and_an_ended_one_does_not(store):
    kept = store.lease(ACCOUNT, 1000, 100, TERMS, NOW)
    gone = store.lease(ACCOUNT, 1000, 100, TERMS, NOW - 60)
    found = store.renew_leases([kept.lease_id, gone.lease_id], NOW + 30, 60)
    assert found == {kept.lease_id}
    assert store.leased(ACCOUNT, PERIOD, NOW + 89) == 100
    store.give_back([kept.lease_id])
    assert store.leased(ACCOUNT, PERIOD, NOW) == 0


def test_the_next_period_begins_with_nothing_spent(store):
    lease = store.lease(ACCOUNT, 100, 100, TERMS, NOW)
    store.append_usage(entry(lease.lease_id, 100))
    assert store.lease(ACCOUNT, 100, 1, TERMS, NOW) == 0
    assert isinstance(store.lease(ACCOUNT, 100, 100, TERMS, NOW + DAY, lease), Lease)


@pytest.fixture
def replica(open_store):
    """Makes replicas of one fleet: their quotas, all of 1,000 tokens, and their database."""
    opened = []

    def make(clock: Clock, limit: int | None = 1000) -> tuple[Quotas, Database]:
        database = Database(open_store())
        opened.append(database)
        return Quotas(database, clock, limit, TERMS), database

    yield make
    for database in opened:
        database.close()


async def test_requests_spend_a_lease_without_the_database(replica):
    quotas, database = replica(Clock())
    (await quotas.hold(DEVICE, 10)).settle(10)
    database.store.close()
    database.call = None  # who asks it now fails
    for _ in range(9):
        hold = await quotas.hold(DEVICE, 10)
        hold.settle(10)
        hold.settle(0)  # only the first time counts
    with pytest.raises(TypeError):
        await quotas.hold(DEVICE, 1)


async def test_what_a_request_did_not_take_is_there_for_the_next(replica):
    quotas, database = replica(Clock())
    for _ in range(30):
        (await quotas.hold(DEVICE, 900)).settle(0)
    assert database.store.leased(ACCOUNT, PERIOD, NOW) <= 1000


async def test_a_spent_quota_is_refused_with_the_time_until_the_next_period(replica):
    quotas, _ = replica(Clock())
    held = await quotas.hold(DEVICE, 800)
    with pytest.raises(BusyError, match="200 left") as caught:
        await quotas.hold(DEVICE, 201)
    assert caught.value.reason == "QUOTA"
    assert caught.value.retry_after_s == DAY - 1000
    held.settle(0)
    await quotas.hold(DEVICE, 1000)


async def test_replicas_never_hold_more_than_the_quota_together(replica):
    clock = Clock()
    one, _ = replica(clock)
    other, database = replica(clock)
    held = 0
    for turn in range(200):
        try:
            await (one if turn % 2 else other).hold(DEVICE, 7)
        except BusyError:
            continue
        held += 7
    assert 900 <= held <= 1000
    assert database.store.leased(ACCOUNT, PERIOD, NOW) <= 1000


async def test_a_quota_of_its_own_counts_and_none_asks_nothing(replica):
    unlimited, database = replica(Clock(), None)
    hold = await unlimited.hold(DEVICE, 10**9)
    assert hold.lease is None
    own = Device(b"u" * 32, b"der", "", 10, 1 << 40, quota_tokens=5)
    with pytest.raises(BusyError):
        await unlimited.hold(own, 6)
    assert database.store.leased(ACCOUNT, PERIOD, NOW) == 0


async def test_idle_leases_are_given_back_and_used_ones_renewed(replica):
    clock = Clock()
    quotas, database = replica(clock)
    hold = await quotas.hold(DEVICE, 10)
    clock.now += 30
    await quotas.renew()
    assert database.store.leased(ACCOUNT, PERIOD, NOW + 80) == 100
    hold.settle(10)
    clock.now += 30
    await quotas.renew()
    assert database.store.leased(ACCOUNT, PERIOD, int(clock.now)) == 0


async def test_a_node_that_stops_gives_its_leases_back(open_store):
    store = open_store()
    database = Database(open_store())
    await Quotas(database, Clock(), 1000, TERMS).hold(DEVICE, 10)
    assert store.leased(ACCOUNT, PERIOD, NOW) == 100
    database.close()
    assert store.leased(ACCOUNT, PERIOD, NOW) == 0


async def test_a_device_over_its_quota_is_told_so_under_the_seal(cloud, database, tmp_path):
    async with cloud.world(tmp_path / "state", database=database) as here:
        key = cloud.device_key()
        client = await here.enrolled(key=key)
        assert cloud.text_of(await cloud.collect(client, cloud.ask("one two", max_tokens=4)))
        here.store.set_quota(key.thumbprint, 3)
        with pytest.raises(BusyError) as caught:
            await cloud.collect(client, cloud.ask("one two", max_tokens=4))
        assert caught.value.reason == "QUOTA"
        await here.node.drain(0.0)
        with closing(open_backend(tmp_path / "state", database)) as backend:
            found = check(backend, NOW)
    assert found.is_good
    assert found.ledger_lines == 1
