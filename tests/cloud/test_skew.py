"""Clocks that are wrong by an hour or a day, on either side, and that are put right again: typed
refusals, nothing sealed to what cannot be verified, and no answer, ledger line or replay lost."""

from __future__ import annotations

import asyncio
import time

import pytest

from overspill.errors import DeviceRejected, EvidenceRejected
from overspill_cloud.database import Database, SteadyClock
from overspill_cloud.store import Store
from overspill_cloud.store.replay import Seen

pytestmark = pytest.mark.anyio
HOUR, DAY = 3600, 86_400
SKEWS = [HOUR, -HOUR, DAY, -DAY]
WINDOW_S = 180


def lines(here):
    return len(here.store.usage())


async def ledger_has(here, count):
    async with asyncio.timeout(10):
        while lines(here) != count:  # noqa: ASYNC110 - a thread writes
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("skew_s", SKEWS)
async def test_a_device_whose_clock_is_wrong_is_told_and_goes_on_when_it_is_right(
    cloud, tmp_path, skew_s
):
    async with cloud.world(tmp_path) as here:
        own = cloud.Clock()
        engine = await here.enrolled(clock=own)
        await cloud.collect(engine, cloud.ask("before"))
        own.offset_s = skew_s
        request = cloud.ask("wrong")
        # By its own clock the evidence is too old, or not yet in force; or the node judges it.
        with pytest.raises((EvidenceRejected, DeviceRejected)) as caught:
            await cloud.collect(engine, request)
        if isinstance(caught.value, DeviceRejected):
            assert caught.value.reason == "clock"
            assert "clock" in f"{caught.value}"
        else:
            assert engine.bytes_sent(request.id) == 0
        own.offset_s = 0.0
        chunks = await cloud.collect(engine, cloud.ask("after"))
        assert cloud.text_of(chunks) == "echo: after"
        await ledger_has(here, 2)


@pytest.mark.parametrize("skew_s", SKEWS)
async def test_a_node_whose_clock_is_wrong_serves_nobody_and_recovers(cloud, tmp_path, skew_s):
    async with cloud.world(tmp_path) as here:
        engine = await here.enrolled(clock=time.time)
        await cloud.collect(engine, cloud.ask("before"))
        here.clock.offset_s = skew_s
        with pytest.raises(DeviceRejected) as caught:
            await cloud.collect(engine, cloud.ask("wrong"))
        assert caught.value.reason == "clock"
        # It renews its evidence by the wrong clock: nobody accepts that, and nothing is sent.
        await here.keys.renew()
        stranger = await _fresh(here, cloud, engine)
        request = cloud.ask("wrong still")
        with pytest.raises((EvidenceRejected, DeviceRejected)):
            await cloud.collect(stranger, request)
        here.clock.offset_s = 0.0
        assert here.keys.is_due()
        await here.keys.renew()
        assert not here.keys.is_due()
        for client in (engine, stranger):
            chunks = await cloud.collect(client, cloud.ask("after"))
            assert cloud.text_of(chunks) == "echo: after"
        await ledger_has(here, 3)


async def _fresh(here, cloud, engine):
    """A client that remembers no evidence, with a device of its own."""
    key = cloud.device_key()
    here.clock.offset_s, skew_s = 0.0, here.clock.offset_s
    here.store.enrol(*_device(key, here))
    here.clock.offset_s = skew_s
    return here.client(key=key, clock=time.time)


def _device(key, here):
    from overspill_cloud.store import Device

    return Device(key.thumbprint, key.public_der, "", 0, 1 << 40), here.code(), int(time.time())


@pytest.mark.parametrize("skew_s", SKEWS)
async def test_an_answer_under_way_outlives_a_step_of_the_clock(cloud, tmp_path, skew_s):
    async with cloud.world(tmp_path, cloud.engine(token_delay_s=0.005)) as here:
        engine = await here.enrolled(clock=time.time)
        text = "an answer that goes on while the time is put right"
        stream = engine.generate(cloud.ask(text))
        chunks = [await anext(stream)]
        here.clock.offset_s = skew_s
        chunks += [chunk async for chunk in stream]
        assert cloud.text_of(chunks) == f"echo: {text}"
        assert chunks[-1].finish.receipt
        await ledger_has(here, 1)


# What replicas remember -----------------------------------------------------------------------


@pytest.mark.parametrize("skew_s", [HOUR, DAY])
async def test_a_clock_that_was_ahead_for_a_moment_forgets_no_request(open_store, skew_s):
    database = Database(open_store())
    now = int(time.time())
    seen = Seen(b"d" * 32, b"1" * 16, now)
    assert await database.is_fresh(seen, WINDOW_S)
    assert await database.is_fresh(Seen(b"d" * 32, b"2" * 16, now + skew_s), WINDOW_S)
    assert not await database.is_fresh(seen, WINDOW_S)
    database.close()


async def test_a_replica_whose_clock_is_wrong_forgets_nothing_for_the_others(postgres, tmp_path):
    from contextlib import closing

    from overspill_cloud.store import open_backend
    from overspill_cloud.store.schema import upgrade

    url = postgres.new_database()
    with closing(open_backend(tmp_path, url)) as backend:
        upgrade(backend)
    right, wrong = (Database(Store(tmp_path, url)) for _ in range(2))
    now = int(time.time())
    for skew_s in SKEWS:
        seen = Seen(b"d" * 32, f"{skew_s:016}".encode(), now)
        assert await right.is_fresh(seen, WINDOW_S)
        other = Seen(b"e" * 32, f"{skew_s:016}".encode(), now + skew_s)
        assert await wrong.is_fresh(other, WINDOW_S)
        assert not await right.is_fresh(seen, WINDOW_S)
        assert not await right.is_fresh(other, WINDOW_S)
    right.close()
    wrong.close()


def test_a_steady_clock_is_never_put_forward():
    elapsed = [0.0]
    clock = SteadyClock(lambda: elapsed[0])
    assert clock.at_most(1000) == 1000
    elapsed[0] = 10.0
    assert clock.at_most(1010) == 1010
    assert clock.at_most(1010 + DAY) <= 1011
    assert clock.at_most(1010 - DAY) == 1010 - DAY
