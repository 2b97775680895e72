"""`Overspill`: a thin blocking face over :class:`~overspill.client.AsyncOverspill`.

The async core runs on an event loop in a thread of its own; every method here only crosses over.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from overspill.arguments import Messages, Options
from overspill.client import AsyncOverspill
from overspill.cloud_gate import CloudState
from overspill.types.card import ModelCard
from overspill.types.chat import Request
from overspill.types.embedding import EmbedReply, EmbedRequest, Pooling
from overspill.types.reply import Availability, Reply, ReplyChunk
from overspill.types.route import Plan

if TYPE_CHECKING:
    from anyio import CancelScope, Event
    from anyio.from_thread import BlockingPortal

    from overspill.models.files import OnProgress
    from overspill.models.store import StoredModel


class _Steps:
    """An answer, taken piece by piece from another thread, that can be left at any moment.

    Ctrl-C may come between asking for a piece and waiting for it: so whoever closes ends the
    step that runs, rather than the one that it knows of.
    """

    def __init__(self, chunks: AsyncGenerator[ReplyChunk]) -> None:
        self._chunks = chunks
        self._scope: CancelScope | None = None
        self._ended: Event | None = None

    async def next(self) -> ReplyChunk:
        """The next piece; ``StopAsyncIteration`` at the end, or when it was closed meanwhile."""
        from anyio import CancelScope, Event

        self._ended = Event()
        try:
            with CancelScope() as self._scope:
                return await anext(self._chunks)
        finally:
            self._scope = None
            self._ended.set()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancel the work and wait until it has ended."""
        if self._scope is not None and self._ended is not None:
            self._scope.cancel()
            await self._ended.wait()
        await self._chunks.aclose()


class Overspill:
    """The blocking client; use it in a ``with`` block. Arguments as `AsyncOverspill`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._core = AsyncOverspill(*args, **kwargs)
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None

    def __enter__(self) -> Self:
        from anyio.from_thread import start_blocking_portal

        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal("asyncio"))
            stack.enter_context(self._portal.wrap_async_context_manager(self._core))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)
        self._portal = None

    @property
    def _open(self) -> BlockingPortal:
        if self._portal is None:
            raise RuntimeError("Overspill is not open. Use it in a with block.")
        return self._portal

    def chat(self, messages: Messages, **options: Unpack[Options]) -> Reply:
        """A whole answer; see :meth:`AsyncOverspill.chat`."""
        return self._open.call(lambda: self._core.chat(messages, **options))

    def collect(self, request: Request) -> Reply:
        """As :meth:`chat`, for a request that is already built."""
        return self._open.call(self._core.collect, request)

    def cloud_state(self) -> CloudState:
        """The cloud's verified evidence and cards, or the problem that keeps it out."""
        return self._open.call(self._core.cloud_state)

    def stream(
        self, messages: Messages, **options: Unpack[Options]
    ) -> Generator[ReplyChunk, None, None]:
        """The answer in pieces; closing the generator cancels the work."""
        return self._iterate(self._core.build(messages, **options))

    def run_request(self, request: Request) -> Generator[ReplyChunk, None, None]:
        """As :meth:`stream`, for a request that is already built."""
        return self._iterate(request)

    def _iterate(self, request: Request) -> Generator[ReplyChunk, None, None]:
        portal = self._open
        steps = _Steps(self._core.run_request(request))
        try:
            while True:
                try:
                    yield portal.start_task_soon(steps.next).result()
                except StopAsyncIteration:
                    return
        finally:
            portal.call(steps.aclose)

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        pooling: Pooling = "model",
        normalize: bool = True,
        dimensions: int | None = None,
    ) -> EmbedReply:
        """A vector for each text; see :meth:`AsyncOverspill.embed`."""
        return self._open.call(
            lambda: self._core.embed(
                texts, pooling=pooling, normalize=normalize, dimensions=dimensions
            )
        )

    def run_embedding(self, request: EmbedRequest) -> EmbedReply:
        """As :meth:`embed`, for a request that is already built."""
        return self._open.call(self._core.run_embedding, request)

    def plan(self, messages: Messages, **options: Unpack[Options]) -> Plan:
        """Where it would run, and why; see :meth:`AsyncOverspill.plan`."""
        return self._open.call(lambda: self._core.plan(messages, **options))

    def plan_request(self, request: Request) -> Plan:
        """As :meth:`plan`, for a request that is already built."""
        return self._open.call(self._core.plan_request, request)

    def build(self, messages: Messages, **options: Unpack[Options]) -> Request:
        """The frozen request that the options mean; see :meth:`AsyncOverspill.build`."""
        return self._core.build(messages, **options)

    def models(self) -> tuple[ModelCard, ...]:
        """The models that can answer now."""
        return self._open.call(self._core.models)

    def availability(self) -> Availability:
        """Whether device and cloud can answer, each with a reason."""
        return self._open.call(self._core.availability)

    def pull(
        self, model: str | None = None, *, on_progress: OnProgress | None = None
    ) -> StoredModel:
        """Fetch a model into the user's store; see :meth:`AsyncOverspill.pull`.

        ``on_progress`` is called in another thread.
        """
        return self._open.call(lambda: self._core.pull(model, on_progress=on_progress))

    def prewarm(self, messages: Messages) -> None:
        """Let the device compute what later prompts begin with; nothing leaves it."""
        self._open.call(self._core.prewarm, messages)

    def enroll(self, code: str) -> int:
        """Enrol this device with the node; see :meth:`AsyncOverspill.enroll`."""
        return self._open.call(self._core.enroll, code)

    def budget(
        self, *, seconds: float | None = None, cost: float | None = None
    ) -> AbstractContextManager[None]:
        """A chain of calls that shares one deadline and one purse."""
        return self._budget(seconds, cost)

    @contextmanager
    def _budget(self, seconds: float | None, cost: float | None) -> Iterator[None]:
        with self._core.budget(seconds=seconds, cost=cost):
            yield

    def close(self) -> None:
        """Stop everything; the same as leaving the ``with`` block."""
        self.__exit__(None, None, None)
