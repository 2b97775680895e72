"""Our side: engines on made models, asked for prompts of exact length."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from overspill.bench.daemon_process import through_daemon
from overspill.bench.streams import StreamClock, StreamTimes, time_stream
from overspill.bench.vocabulary import make_words
from overspill.client import AsyncOverspill
from overspill.config import load_settings
from overspill.engines.base import Engine
from overspill.engines.options import EngineOptions
from overspill.engines.registry import open_engine
from overspill.errors import InvalidRequest
from overspill.types.chat import Message, Privacy, Request
from overspill.worker import WorkerEngine

CACHE_SCOPE = "bench"
"""Requests share computed prompts with those of their own scope only."""


@dataclass(frozen=True, slots=True)
class Overheads:
    """Tokens that a chat template adds to a user's words, and to a system's before them."""

    user: int
    system: int

    @classmethod
    async def of(cls, engine: Engine) -> Overheads:
        """Asks the engine, by prompts of one word: one token."""
        asked, told = (Message(role, make_words(1, (0,))) for role in ("user", "system"))
        user = await engine.count_prompt_tokens(Request((asked,))) or 0
        both = await engine.count_prompt_tokens(Request((told, asked))) or 0
        return cls(user - 1, both - user - 1)


class OurTarget:
    """An engine, asked with chat requests; see :class:`~.streams.Target`."""

    def __init__(
        self, engine: Engine, overheads: Overheads, adapters: tuple[str, ...] = ()
    ) -> None:
        self.engine = engine
        self._overheads = overheads
        self._adapters = adapters

    def without_adapters(self) -> OurTarget:
        """The same engine, asked for none."""
        return OurTarget(self.engine, self._overheads)

    async def stream(
        self,
        prompt_tokens: int,
        max_tokens: int,
        *seed: int,
        system_tokens: int = 0,
        clock: StreamClock | None = None,
    ) -> StreamTimes:
        """One greedy answer."""
        clock = clock or StreamClock()
        request = self.request(prompt_tokens, max_tokens, *seed, system_tokens=system_tokens)
        async with aclosing(self.engine.generate(request)) as chunks:
            return await time_stream(chunks, max_tokens, clock)

    def request(
        self, prompt_tokens: int, max_tokens: int, *seed: int, system_tokens: int = 0
    ) -> Request:
        """A request whose rendered prompt has exactly ``prompt_tokens`` tokens.

        Adapters take turns by the last number of the seed.

        Raises :class:`InvalidRequest` where the template alone is longer.
        """
        user_words = prompt_tokens - system_tokens - self._overheads.user
        system_words = system_tokens - self._overheads.system
        if user_words < 1 or (system_tokens and system_words < 1):
            raise InvalidRequest(
                f"The chat template leaves no room for words in a prompt of {prompt_tokens} tokens."
            )
        user = Message("user", make_words(user_words, (*seed, prompt_tokens)))
        system = Message("system", make_words(max(system_words, 0), (system_tokens,)))
        return Request(
            messages=(system, user) if system_tokens else (user,),
            max_tokens=max_tokens,
            cache_scope=CACHE_SCOPE,
            adapter=self._adapter(seed),
        )

    def _adapter(self, seed: tuple[int, ...]) -> str | None:
        return self._adapters[seed[-1] % len(self._adapters)] if self._adapters else None


Opener = Callable[[Path, EngineOptions], AbstractAsyncContextManager[OurTarget]]


@asynccontextmanager
async def serving(engine: Engine, adapters: tuple[str, ...] = ()) -> AsyncGenerator[OurTarget]:
    """An engine, started, as a target."""
    async with engine:
        yield OurTarget(engine, await Overheads.of(engine), adapters)


def in_process(model: Path, options: EngineOptions) -> AbstractAsyncContextManager[OurTarget]:
    """The engine on a thread of this process."""
    return serving(open_engine(str(model), options=options))


def in_worker(model: Path, options: EngineOptions) -> AbstractAsyncContextManager[OurTarget]:
    """The engine in a worker process, through its Unix socket."""
    return serving(WorkerEngine(str(model), options=options))


@asynccontextmanager
async def in_daemon(model: Path, options: EngineOptions) -> AsyncGenerator[OurTarget]:
    """The engine in a daemon, through gRPC on its Unix socket."""
    async with through_daemon(model, options) as engine, serving(engine) as target:
        yield target


@asynccontextmanager
async def sdk_client(model: Path) -> AsyncGenerator[AsyncOverspill]:
    """A client as an app gets it by default, but with this model and a home of its own.

    It never speculates: no peer does.
    """
    with TemporaryDirectory(prefix="overspill-bench-") as home:
        settings = load_settings(environ={"OVERSPILL_HOME": home, "OVERSPILL_MODEL": str(model)})
        settings = replace(settings.with_floor(Privacy.DEVICE), speculation="off")
        async with AsyncOverspill("bench", settings=settings, daemon="never") as client:
            yield client


async def stream_by_sdk(
    client: AsyncOverspill, words: int, max_tokens: int, *seed: int
) -> StreamTimes:
    """One answer through the public ``stream()``."""
    clock = StreamClock()
    text = make_words(words, (*seed, words))
    async with aclosing(client.stream(text, max_tokens=max_tokens)) as chunks:
        return await time_stream(chunks, max_tokens, clock)
