"""`Overspill`: a thin blocking face over :class:`~overspill.client.AsyncOverspill`.

The async core runs on an event loop in a thread of its own; every method here only crosses over.
"""

from __future__ import annotations

import os
from asyncio import CancelledError
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from inspect import isawaitable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, TypeVarTuple, Unpack, overload

from overspill.arguments import CallOptions, Options, RunOptions
from overspill.budget import Budget
from overspill.checkup import SelfTest, not_opened
from overspill.client import MAX_STEPS, AsyncOverspill, OnConsent
from overspill.cloud_gate import CloudState, KnownCloud
from overspill.config import Settings
from overspill.daemon import DaemonUse
from overspill.engines.base import Engine
from overspill.engines.embedder import Embedder
from overspill.errors import NotOpen, OverspillError, UsageError
from overspill.event_loop import new_event_loop
from overspill.openai_access import OpenAIAccess
from overspill.opening import open_device
from overspill.policy_lock import AdminPolicy
from overspill.providers.granted import GrantedEngine
from overspill.remote import RemoteEngine
from overspill.routing.policy import RoutingPolicy
from overspill.state.spending import Spending
from overspill.tools import ToolArgument
from overspill.turns import Messages
from overspill.types.card import ModelCard
from overspill.types.chat import Grammar, Request
from overspill.types.embedding import EmbedReply, EmbedRequest, Pooling
from overspill.types.reply import (
    Availability,
    ReceiptRecord,
    Reply,
    ReplyChunk,
    RunReply,
    TypedReply,
)
from overspill.types.route import Plan

if TYPE_CHECKING:
    from concurrent.futures import Future

    from anyio import CancelScope, Event
    from anyio.from_thread import BlockingPortal

    from overspill.models.files import OnProgress
    from overspill.models.store import StoredModel

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


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


class _Work:
    """One call of the core, that can be left at any moment.

    Ctrl-C may come while the call is on its way, before anything stands for it that its caller
    could cancel: so the caller makes this first.
    """

    def __init__(self) -> None:
        self._scope: CancelScope | None = None
        self._left = False
        self.ended = False

    async def run(self, work: Callable[[*_Ts], Awaitable[_T] | _T], *arguments: *_Ts) -> _T:
        """What ``work`` gives."""
        from anyio import CancelScope

        try:
            with CancelScope() as self._scope:
                if self._left:
                    self._scope.cancel()
                given = work(*arguments)
                return await given if isawaitable(given) else given
        finally:
            self.ended = True
        raise CancelledError  # nobody waits for it any more

    def leave(self) -> None:
        """Cancel it, in its event loop, though it may only begin later."""
        self._left = True
        if self._scope is not None:
            self._scope.cancel()


class Overspill:
    """The blocking client; use it in a ``with`` block. Arguments as `AsyncOverspill`."""

    def __init__(
        self,
        app: str = "default",
        *,
        settings: Settings | None = None,
        device: Engine | None = None,
        cloud: RemoteEngine | None = None,
        embedder: Embedder | None = None,
        third_party: GrantedEngine | None = None,
        daemon: DaemonUse = "auto",
        on_consent: OnConsent | None = None,
        open_engine: Callable[[Settings], Engine] = open_device,
    ) -> None:
        self._core = AsyncOverspill(
            app,
            settings=settings,
            device=device,
            cloud=cloud,
            embedder=embedder,
            third_party=third_party,
            daemon=daemon,
            on_consent=on_consent,
            open_engine=open_engine,
        )
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        from anyio.from_thread import start_blocking_portal

        if self._portal is not None:
            raise UsageError("Overspill is open already.", mend="Use one block for each.")
        self._pid = os.getpid()
        with ExitStack() as stack:
            options = {"loop_factory": new_event_loop}
            portal = stack.enter_context(start_blocking_portal("asyncio", options))
            stack.enter_context(portal.wrap_async_context_manager(self._core))
            self._stack = stack.pop_all()
        self._portal = portal
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._portal = None
        if self._pid == os.getpid():  # a fork has the block, and not the thread that would end it
            self._stack.__exit__(kind, error, traceback)

    @property
    def _open(self) -> BlockingPortal:
        if self._portal is None:
            raise NotOpen("Overspill is not open.", mend="Use it in a with block.")
        if self._pid != os.getpid():
            raise NotOpen(
                "This Overspill was opened in another process, of which this one is a fork.",
                mend="Open one in the process that uses it.",
            )
        return self._portal

    @overload
    def _ask(self, work: Callable[[*_Ts], Awaitable[_T]], *arguments: *_Ts) -> _T: ...
    @overload
    def _ask(self, work: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T: ...
    def _ask(self, work: Callable[[*_Ts], Awaitable[_T] | _T], *arguments: *_Ts) -> _T:
        """What ``work`` gives in the core's event loop; who is interrupted while it waits (Ctrl-C)
        has it cancelled, for nobody would take it."""
        portal, call = self._open, _Work()
        try:
            asked: Future[_T] = portal.start_task_soon(call.run, work, *arguments)
            return asked.result()
        except BaseException:
            if not call.ended:
                with suppress(RuntimeError):  # its client is closed, and all its calls with it
                    portal.start_task_soon(call.leave)
            raise

    @overload
    def chat(
        self, messages: Messages, *, output: type[_T], **options: Unpack[CallOptions]
    ) -> TypedReply[_T]: ...
    @overload
    def chat(
        self, messages: Messages, *, output: Mapping[str, Any], **options: Unpack[CallOptions]
    ) -> TypedReply[Any]: ...
    @overload
    def chat(
        self,
        messages: Messages,
        *,
        output: Grammar | None = None,
        **options: Unpack[CallOptions],
    ) -> Reply: ...
    def chat(
        self, messages: Messages, *, output: Any = None, **options: Unpack[CallOptions]
    ) -> Reply:
        """A whole answer; see :meth:`AsyncOverspill.chat`."""
        reply: Reply = self._ask(lambda: self._core.chat(messages, output=output, **options))
        return reply

    def collect(self, request: Request) -> Reply:
        """As :meth:`chat`, for a request that is already built."""
        return self._ask(self._core.collect, request)

    def cloud_state(self) -> CloudState:
        """The cloud's verified evidence and cards, or the problem that keeps it out."""
        return self._ask(self._core.cloud_state)

    def stream(
        self, messages: Messages, **options: Unpack[Options]
    ) -> Generator[ReplyChunk, None, None]:
        """The answer in pieces; closing the generator cancels the work."""
        return self._iterate(lambda: self._core.stream(messages, **options))

    @overload
    def run(
        self,
        messages: Messages,
        *,
        tools: Sequence[ToolArgument],
        max_steps: int = MAX_STEPS,
        output: type[_T],
        **options: Unpack[RunOptions],
    ) -> RunReply[_T]: ...
    @overload
    def run(
        self,
        messages: Messages,
        *,
        tools: Sequence[ToolArgument],
        max_steps: int = MAX_STEPS,
        output: Any = None,
        **options: Unpack[RunOptions],
    ) -> RunReply[Any]: ...
    def run(
        self,
        messages: Messages,
        *,
        tools: Sequence[ToolArgument],
        max_steps: int = MAX_STEPS,
        output: Any = None,
        **options: Unpack[RunOptions],
    ) -> RunReply[Any]:
        """Ask, make the calls that the model wants, until it answers; see
        :meth:`AsyncOverspill.run`. Plain functions are called in threads of their own."""
        reply: RunReply[Any] = self._ask(
            lambda: self._core.run(
                messages, tools=tools, max_steps=max_steps, output=output, **options
            )
        )
        return reply

    def run_request(self, request: Request) -> Generator[ReplyChunk, None, None]:
        """As :meth:`stream`, for a request that is already built."""
        return self._iterate(lambda: self._core.run_request(request))

    def _iterate(
        self, begin: Callable[[], AsyncGenerator[ReplyChunk]]
    ) -> Generator[ReplyChunk, None, None]:
        portal = self._open
        steps = _Steps(begin())
        try:
            while True:
                if self._open is not portal:
                    raise NotOpen("The client of this stream was closed.", mend="Ask again.")
                try:
                    yield portal.start_task_soon(steps.next).result()
                except StopAsyncIteration:
                    return
        finally:
            if self._portal is portal and self._pid == os.getpid():  # else it ended with them
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
        return self._ask(
            lambda: self._core.embed(
                texts, pooling=pooling, normalize=normalize, dimensions=dimensions
            )
        )

    def run_embedding(self, request: EmbedRequest) -> EmbedReply:
        """As :meth:`embed`, for a request that is already built."""
        return self._ask(self._core.run_embedding, request)

    def plan(self, messages: Messages, **options: Unpack[Options]) -> Plan:
        """Where it would run, and why; see :meth:`AsyncOverspill.plan`."""
        return self._ask(lambda: self._core.plan(messages, **options))

    def plan_request(self, request: Request) -> Plan:
        """As :meth:`plan`, for a request that is already built."""
        return self._ask(self._core.plan_request, request)

    def build(self, messages: Messages, **options: Unpack[Options]) -> Request:
        """The frozen request that the options mean; see :meth:`AsyncOverspill.build`."""
        return self._core.build(messages, **options)

    def models(self) -> tuple[ModelCard, ...]:
        """The models that can answer now."""
        return self._ask(self._core.models)

    def availability(self) -> Availability:
        """Whether device and cloud can answer, each with a reason."""
        return self._ask(self._core.availability)

    def pull(
        self, model: str | None = None, *, on_progress: OnProgress | None = None
    ) -> StoredModel:
        """Fetch a model into the user's store; see :meth:`AsyncOverspill.pull`.

        ``on_progress`` is called in another thread.
        """
        return self._ask(lambda: self._core.pull(model, on_progress=on_progress))

    def receipts(self, limit: int = 100) -> tuple[ReceiptRecord, ...]:
        """The newest receipts; see :meth:`AsyncOverspill.receipts`."""
        return self._ask(self._core.receipts, limit)

    def selftest(self) -> SelfTest:
        """What works on this machine; see :meth:`AsyncOverspill.selftest`."""
        return self._ask(self._core.selftest)

    def openai(self, *, tcp: bool = False) -> OpenAIAccess:
        """How other clients reach the same models; see :meth:`AsyncOverspill.openai`."""
        return self._ask(lambda: self._core.openai(tcp=tcp))

    def queue_position(self, request_id: str) -> int | None:
        """How many requests wait ahead; see :meth:`AsyncOverspill.queue_position`."""
        return self._ask(self._core.queue_position, request_id)

    @property
    def app(self) -> str:
        """The app's name for itself."""
        return self._core.app

    @property
    def settings(self) -> Settings:
        """The settings in use."""
        return self._core.settings

    @property
    def daemon_problem(self) -> OverspillError | None:
        """Why a daemon that was looked for is not used."""
        return self._core.daemon_problem

    @property
    def admin_policy(self) -> AdminPolicy | None:
        """The administrator's rules; see :meth:`AsyncOverspill.admin_policy`."""
        return self._core.admin_policy

    def known_models(self) -> tuple[ModelCard, ...]:
        """The models that are known without asking anybody."""
        return self._core.known_models()

    def known_cloud(self) -> KnownCloud | None:
        """What is known of the cloud without asking it."""
        return self._core.known_cloud()

    def spending(self, since_unix_s: int = 0) -> list[Spending]:
        """Tokens, money and energy by route and model."""
        return self._ask(self._core.spending, since_unix_s)

    @property
    def routing_policy(self) -> RoutingPolicy:
        """The rules in force; see :meth:`AsyncOverspill.routing_policy`."""
        return self._core.routing_policy

    @property
    def uses_daemon(self) -> bool:
        """Whether the daemon answers; see :meth:`AsyncOverspill.uses_daemon`."""
        return self._core.uses_daemon

    @property
    def device_problem(self) -> OverspillError | None:
        """What kept the app's own device model from starting."""
        return self._core.device_problem

    def prewarm(self, messages: Messages) -> None:
        """Let the device compute what later prompts begin with; nothing leaves it."""
        self._ask(self._core.prewarm, messages)

    def enroll(self, code: str) -> int:
        """Enrol this device with the node; see :meth:`AsyncOverspill.enroll`."""
        return self._ask(self._core.enroll, code)

    def budget(
        self,
        *,
        seconds: float | None = None,
        cost: float | None = None,
        tokens: int | None = None,
        calls: int | None = None,
    ) -> AbstractContextManager[Budget]:
        """A chain of calls that shares what it has; see :meth:`AsyncOverspill.budget`."""
        return self._core.budget(seconds=seconds, cost=cost, tokens=tokens, calls=calls)

    def close(self) -> None:
        """Stop everything; the same as leaving the ``with`` block."""
        self.__exit__(None, None, None)


def selftest(settings: Settings | None = None) -> SelfTest:
    """What works on this machine with an engine of one's own; see
    :meth:`AsyncOverspill.selftest`. Raises nothing that it can tell."""
    try:
        with Overspill(app="selftest", settings=settings, daemon="never") as ai:
            return ai.selftest()
    except OverspillError as error:
        return not_opened(error)
