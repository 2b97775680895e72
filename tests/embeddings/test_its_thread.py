"""An embedder's thread: it is seen when it stands still, and works for nobody who has left."""

from __future__ import annotations

import asyncio
import threading

import pytest

from overspill.engines.echo_embedding import EchoEmbeddingModel
from overspill.engines.embedder import STALL_TOKENS, ThreadedEmbedder
from overspill.errors import EngineDied, EngineError, TransportError
from overspill.transport.local.options import LocalOptions
from overspill.transport.local.worker_client import WorkerClient
from overspill.transport.local.worker_server import serve_worker
from overspill.types.embedding import EmbedRequest

pytestmark = pytest.mark.anyio

STALL_S = 10.0


class Held(EchoEmbeddingModel):
    """Runs each batch when a test gives leave, or until it is interrupted, as runtimes can be."""

    def __init__(self):
        super().__init__()
        self.begun, self.broken_off = [], 0
        self.leave = threading.Semaphore(0)
        self._stopped = False

    def run(self, texts, pooling, *, normalize):
        self.begun.append([bytes(text).decode() for text in texts])
        self.leave.acquire()
        if self._stopped:
            self.broken_off += 1
            raise EngineError("stopped")
        return super().run(texts, pooling, normalize=normalize)

    def interrupt(self):
        self._stopped = True
        self.leave.release()

    def rearm(self):
        self._stopped = False


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def model():
    return Held()


@pytest.fixture
async def embedder(model, clock):
    made = ThreadedEmbedder(
        lambda: model, name="held", runtime="echo", stall_after_s=STALL_S, clock=clock
    )
    async with made as running:
        yield running
        model.leave.release(100)


async def _begun(model, batches):
    while len(model.begun) < batches:  # noqa: ASYNC110 - the other side is a thread
        await asyncio.sleep(0.002)


def _asking(embedder, *texts):
    return asyncio.create_task(embedder.embed(EmbedRequest(texts)))


async def test_a_batch_that_does_not_end_is_seen(embedder, model, clock):
    asked = _asking(embedder, "one")
    await _begun(model, 1)
    clock.now_s = STALL_S
    assert (await embedder.health()).ok
    clock.now_s += 0.1
    health = await embedder.health()
    assert not health.ok
    assert "has not ended in time" in health.detail
    model.leave.release()
    assert (await asked).vectors
    clock.now_s += 1000.0
    assert (await embedder.health()).ok


async def test_a_long_text_has_as_much_more_time_as_it_is_longer(embedder, model, clock):
    asked = _asking(embedder, "x" * 3 * STALL_TOKENS)
    await _begun(model, 1)
    clock.now_s = 3 * STALL_S
    assert (await embedder.health()).ok
    clock.now_s += 0.1
    assert not (await embedder.health()).ok
    model.leave.release()
    await asked


async def test_the_caller_of_a_worker_whose_embedder_stands_still_is_told(
    embedder, model, clock, tmp_path
):
    options = LocalOptions(heartbeat_s=0.02, silence_s=0.3)
    server, where = await serve_worker(
        embedder, f"unix:{tmp_path / 's'}", token="t", options=options
    )
    client = await WorkerClient.connect(where, token="t", options=options)
    asked = asyncio.create_task(client.embed(EmbedRequest(("one",))))
    await _begun(model, 1)
    clock.now_s = STALL_S + 0.1
    with pytest.raises(TransportError):
        await asked
    await client.aclose()
    server.close()


async def test_who_leaves_stops_the_batch_that_runs_and_those_behind_it(embedder, model):
    texts = ["a" * 400, "b" * 401, "c" * 402]  # a batch each
    leaving = _asking(embedder, *texts)
    await _begun(model, 1)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    model.leave.release(100)
    assert (await embedder.embed(EmbedRequest(("next",)))).vectors
    assert model.broken_off == 1
    assert model.begun == [["a" * 400], ["next"]]


async def test_who_leaves_while_he_waits_stops_nobody(embedder, model):
    running, waiting = _asking(embedder, "running"), _asking(embedder, "waiting")
    await _begun(model, 1)
    waiting.cancel()
    await asyncio.wait({waiting})
    model.leave.release(100)
    assert (await running).vectors
    assert (model.broken_off, model.begun) == (0, [["running"]])


async def test_closing_ends_what_runs_and_what_waits(embedder, model):
    asked = [_asking(embedder, "one"), _asking(embedder, "two")]
    await _begun(model, 1)
    await embedder.aclose()
    one, two = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(one, EngineError)
    assert isinstance(two, EngineDied)
    assert len(model.begun) == 1


@pytest.mark.parametrize("kind", ["bert", "mlx"])
async def test_a_runtime_stops_where_it_is_told_to(kind, open_kind):
    async with open_kind(kind) as embedder:
        await asyncio.wrap_future(embedder._loaded.thread.submit(_run_until_stopped, embedder))


def _run_until_stopped(embedder):
    model = embedder._loaded.model
    texts = [model.tokenize("some words")]
    assert model.run(texts, "mean", normalize=True)
    model.interrupt()
    with pytest.raises(EngineError, match="stopped"):
        model.run(texts, "mean", normalize=True)
    model.rearm()
    assert model.run(texts, "mean", normalize=True)
