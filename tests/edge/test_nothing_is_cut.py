"""A fact at the start of a prompt that is too long: by each endpoint and engine an error, never a
200 from the device over what was left of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import httpx2
import pytest

from overspill import AsyncOverspill
from overspill.config import Settings
from overspill.errors import ContextOverflow
from overspill_edge.app import Daemon, Ready, ServeOptions

pytestmark = pytest.mark.anyio

CONTEXT_TOKENS = 256
FACT = "The code is 4711. "
TOO_LONG = FACT + "and then the river went on to the sea " * 800
TURNS = [{"role": "user", "content": TOO_LONG}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": TURNS},
    "/v1/completions": {"prompt": TOO_LONG, "max_tokens": 4},
    "/v1/responses": {"input": TOO_LONG},
    "/v1/messages": {"messages": TURNS, "max_tokens": 4},
    "/v1/embeddings": {"input": TOO_LONG, "overspill": {"pooling": "mean"}},
}
ENGINES = {"echo": "numpy", "llama.cpp": "llama_cpp", "mlx": "mlx_lm"}


@dataclass(frozen=True)
class At:
    """A daemon over one engine."""

    http: httpx2.AsyncClient
    settings: Settings


@pytest.fixture(params=ENGINES)
def model(request, repository) -> str:
    if find_spec(ENGINES[request.param]) is None:
        pytest.skip(f"{ENGINES[request.param]} is not installed")
    folder = repository / "examples" / "family" / "models" / "brook-f32"
    return {"echo": "echo", "llama.cpp": "brook", "mlx": str(folder)}[request.param]


@pytest.fixture
async def at(settings: Settings, model: str) -> AsyncIterator[At]:
    ours = replace(settings.with_model(model), max_context_tokens=CONTEXT_TOKENS)
    async with serving(ours) as found:
        yield found


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[At]:
    daemon = Daemon(ServeOptions(settings=settings))
    ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(daemon.run(ready.set_result))
    await asyncio.wait({ready, running}, return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        await running
    way = httpx2.AsyncHTTPTransport(uds=ready.result().socket)
    async with httpx2.AsyncClient(transport=way, base_url="http://localhost", timeout=60) as http:
        yield At(http, settings)
    daemon.stop()
    await running


async def refused_by_http(at: At) -> None:
    for path, body in BODIES.items():
        for stream in (False,) if path == "/v1/embeddings" else (False, True):
            asked = {"model": "auto", **body, **({"stream": True} if stream else {})}
            answer = await at.http.post(path, json=asked)
            seen = (path, stream, answer.status_code, answer.text)
            assert answer.status_code == 400, seen
            assert answer.headers["x-overspill-code"] == "context_length_exceeded", seen
            assert "4711" not in answer.text, seen


async def test_over_http(at):
    await refused_by_http(at)
    # Who only counts, or asks for a plan, is told how long it is, and that nobody here answers.
    counted = await at.http.post(
        "/v1/messages/count_tokens", json={"model": "auto", "messages": TURNS}
    )
    assert counted.json()["input_tokens"] > CONTEXT_TOKENS
    plan = await at.http.post("/overspill/v1/plan", json={"model": "auto", "messages": TURNS})
    assert plan.json()["route"] == "refused"


async def test_over_grpc(at):
    async with AsyncOverspill("t", settings=at.settings, daemon="require") as ai:
        with pytest.raises(ContextOverflow) as whole:
            await ai.chat(TOO_LONG)
        assert whole.value.prompt_tokens > CONTEXT_TOKENS == whole.value.context
        with pytest.raises(ContextOverflow):
            _ = [piece async for piece in ai.stream(TOO_LONG)]
        with pytest.raises(ContextOverflow):
            await ai.embed([FACT, TOO_LONG], pooling="mean")
        assert (await ai.plan(TOO_LONG)).route == "refused"
