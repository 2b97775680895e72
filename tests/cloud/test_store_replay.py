"""The replay window: once, at whichever replica, whatever the order."""

from __future__ import annotations

import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overspill_cloud.database import Database
from overspill_cloud.store.replay import Seen

WINDOW = 180


def test_the_replay_window_is_per_device_and_slides(store):
    assert store.record_request(b"a" * 32, b"1" * 16, 100, WINDOW)
    assert not store.record_request(b"a" * 32, b"1" * 16, 100, WINDOW)
    assert store.record_request(b"b" * 32, b"1" * 16, 100, WINDOW)
    assert not store.record_request(b"a" * 32, b"1" * 16, 280, WINDOW)
    assert store.record_request(b"a" * 32, b"1" * 16, 281, WINDOW)


def test_pruning_forgets_what_fell_out_and_nothing_else(store):
    store.record_request(b"a" * 32, b"1" * 16, 100, WINDOW)
    store.record_request(b"a" * 32, b"2" * 16, 101, WINDOW)
    assert store.prune_replay(101) == 1
    assert not store.record_request(b"a" * 32, b"2" * 16, 281, WINDOW)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), max_size=6), st.binary())
def test_of_equals_in_one_commit_the_first_is_fresh(store, batches, salt):
    device = salt[:16].ljust(16, b"-") + threading.current_thread().name.encode()[:8].ljust(16)
    known = {bytes(row) for row in _known(store, device)}
    for batch in batches:
        ids = [bytes([n]) * 16 for n in batch]
        expected = []
        for one in ids:
            expected.append(one not in known)
            known.add(one)
        assert store.record_requests([Seen(device, one, 100) for one in ids], WINDOW) == expected


def _known(store, device: bytes) -> list[bytes]:
    """What earlier examples left: none of it may be fresh again."""
    ids = [bytes([n]) * 16 for n in range(6)]
    with store._backend.read() as db:
        from overspill_cloud.store.tables import replay

        rows = db.execute(replay.select().where(replay.c.thumbprint == device)).all()
    return [row.request_id for row in rows if row.request_id in ids]


def test_replicas_that_are_asked_at_once_agree_who_was_first(open_store):
    replicas = [open_store() for _ in range(3)]
    ids = [n.to_bytes(16, "big") for n in range(300)]
    accepted: list[list[bytes]] = [[] for _ in replicas]
    barrier = threading.Barrier(len(replicas))

    def ask(index: int) -> None:
        order = ids[index * 100 :] + ids[: index * 100]
        barrier.wait()
        for start in range(0, len(order), 20):
            group = [Seen(b"d" * 32, one, 100) for one in order[start : start + 20]]
            fresh = replicas[index].record_requests(group, WINDOW)
            accepted[index] += [s.request_id for s, ok in zip(group, fresh, strict=True) if ok]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(replicas))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one for found in accepted for one in found) == ids


@pytest.mark.anyio
async def test_those_who_ask_together_share_commits(open_store):
    import asyncio

    database = Database(open_store())
    commits = []
    record = database.store.record_requests

    def counted(seen, window_s):
        commits.append(len(seen))
        return record(seen, window_s)

    database.store.record_requests = counted
    asked = [Seen(b"d" * 32, (n % 50).to_bytes(16, "big"), 100) for n in range(100)]
    fresh = await asyncio.gather(*(database.is_fresh(one, WINDOW) for one in asked))
    assert fresh == [True] * 50 + [False] * 50
    assert len(commits) <= 3
    database.close()
