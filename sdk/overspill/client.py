"""`AsyncOverspill`: what an app imports; it builds requests and finds who answers them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

from overspill.arguments import (
    CallOptions,
    Options,
    RunOptions,
    build_embedding,
    build_request,
    check_count,
    check_names,
)
from overspill.budget import Budget, ChainLengths, current_budget, use_budget
from overspill.checkup import SelfTest, try_all
from overspill.cloud_gate import CloudState, KnownCloud
from overspill.config import Settings, load_settings
from overspill.daemon import DaemonUse
from overspill.engines.base import Engine
from overspill.engines.embedder import Embedder
from overspill.errors import (
    ConsentRequired,
    EngineError,
    OverspillError,
    UsageError,
)
from overspill.in_process import InProcess
from overspill.openai_access import Embedded, OpenAIAccess, through_socket
from overspill.opening import open_device
from overspill.placement import Placement, check_parts
from overspill.policy_lock import AdminPolicy
from overspill.providers.granted import GrantedEngine
from overspill.remote import RemoteEngine
from overspill.routing.policy import RoutingPolicy
from overspill.state.spending import Spending
from overspill.toolrun import called, run_tools
from overspill.tools import ToolArgument, bound
from overspill.transport.loopback import HAS_UNIX_SOCKETS
from overspill.turns import Messages, check_text
from overspill.typed import fields_of, read_chunk, read_reply, reader_of
from overspill.types.card import ModelCard
from overspill.types.chat import Grammar, Privacy, Request
from overspill.types.embedding import EmbedReply, EmbedRequest, Pooling
from overspill.types.reply import (
    Availability,
    ReceiptRecord,
    Reply,
    ReplyChunk,
    RunReply,
    TypedReply,
)
from overspill.types.route import Grant, Plan

if TYPE_CHECKING:
    from overspill.models.files import OnProgress
    from overspill.models.store import StoredModel

MAX_STEPS = 8
"""Answers of one run, unless it is told otherwise."""

OnConsent = Callable[[Plan], Grant | None] | Callable[[Plan], Awaitable[Grant | None]]
"""Asks a person whether this one request may go to a third party."""

_T = TypeVar("_T")


class AsyncOverspill:
    """A client for one app; use it in an ``async with`` block.

    ``settings`` default to the user's own. ``daemon`` says who answers: ``auto`` takes the daemon
    of this user where one runs, accepts the app and does the work that ``settings`` name, and
    engines of the app's own else; ``require`` raises ``ConnectFailed``, ``VersionMismatch`` or
    ``DaemonRefused`` in place of that; ``never`` does not look for one. ``device``, ``cloud`` and
    ``embedder`` replace what the settings name, are closed with the client, and mean ``never``, as
    does ``third_party``: a provider's API behind consent (see ``overspill.providers``). One that
    the settings name is opened with them, and makes ``auto`` mean ``never``.

    ``on_consent`` (plain, called in a thread, or async) is asked for each request that only a third
    party could answer, with its plan, and gives a :class:`Grant` for that request, or None.
    ``open_engine`` opens the device's engine where this process has one, in a way of its own.
    """

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
        check_parts(app, settings, daemon)
        self._app = app
        self._settings = settings or load_settings()
        self._own = InProcess(
            self._settings,
            device=device,
            cloud=cloud,
            embedder=embedder,
            third_party=third_party,
            open_engine=open_engine,
        )
        brought = any(part is not None for part in (device, cloud, embedder, third_party))
        if brought and daemon == "require":
            raise UsageError(
                "Engines of one's own are not given to a daemon.", mend="Leave out one of the two."
            )
        # A grant is signed and spent here: a daemon would only be shown one that it cannot check.
        by_consent = daemon == "auto" and self._settings.third_party is not None
        use: DaemonUse = "never" if brought or by_consent else daemon
        self._place = Placement(app, self._settings, self._own, use, for_work=settings is not None)
        self._embedded = Embedded()
        self._on_consent = on_consent
        self._chains = ChainLengths()
        self._prices: dict[str, ModelCard] = {}

    async def __aenter__(self) -> Self:
        await self._place.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel what runs and free the engines. May be called twice."""
        await self._embedded.aclose()
        await self._place.aclose()

    @overload
    async def chat(
        self, messages: Messages, *, output: type[_T], **options: Unpack[CallOptions]
    ) -> TypedReply[_T]: ...
    @overload
    async def chat(
        self, messages: Messages, *, output: Mapping[str, Any], **options: Unpack[CallOptions]
    ) -> TypedReply[Any]: ...
    @overload
    async def chat(
        self,
        messages: Messages,
        *,
        output: Grammar | None = None,
        **options: Unpack[CallOptions],
    ) -> Reply: ...
    async def chat(
        self, messages: Messages, *, output: Any = None, **options: Unpack[CallOptions]
    ) -> Reply:
        """A whole answer. Raises the typed error that ended it, with any text in ``partial``.

        With ``output`` the answer is held to a type or a JSON schema, and is in ``reply.output``
        as such a value; ``OutputInvalid`` where it is none after all (it was cut off, say).
        """
        reply = await self.collect(self.build(messages, output=output, **options))
        return read_reply(reply, reader_of(output))

    async def collect(self, request: Request) -> Reply:
        """As :meth:`chat`, for a request that is already built."""
        started = time.perf_counter()
        pieces: list[ReplyChunk] = []
        ttft: float | None = None
        async with aclosing(self.run_request(request)) as chunks:
            async for chunk in chunks:
                if chunk.text and ttft is None:
                    ttft = time.perf_counter() - started
                pieces.append(chunk)
        last = pieces[-1]
        finish = last.finish
        if finish is None:  # Engine.generate would have raised already
            raise EngineError("The answer has no end.")
        return Reply(
            text="".join(piece.text for piece in pieces),
            route=last.route,
            usage=finish.usage,
            finish_reason=finish.reason,
            model=finish.model,
            request_id=request.id,
            tool_calls=tuple(call for piece in pieces for call in piece.tool_calls),
            logprobs=tuple(p for piece in pieces for p in piece.logprobs),
            receipt=last.receipt,
            ttft_s=ttft,
            total_s=time.perf_counter() - started,
            reasoning="".join(piece.reasoning for piece in pieces),
        )

    async def stream(
        self, messages: Messages, **options: Unpack[Options]
    ) -> AsyncGenerator[ReplyChunk]:
        """The answer in pieces, the route on each; closing the generator cancels the work.

        With ``output`` the last piece has the whole answer as such a value (see :meth:`chat`), and
        each before it in ``partial`` what of the JSON is written so far, unchecked: with the extra
        ``typed``.
        """
        read = reader_of(options.get("output"))
        said = ""
        async with aclosing(self.run_request(self.build(messages, **options))) as chunks:
            async for chunk in chunks:
                said += chunk.text
                if read is not None and said:
                    chunk = read_chunk(chunk, said, read)
                yield chunk

    @overload
    async def run(
        self,
        messages: Messages,
        *,
        tools: Sequence[ToolArgument],
        max_steps: int = MAX_STEPS,
        output: type[_T],
        **options: Unpack[RunOptions],
    ) -> RunReply[_T]: ...
    @overload
    async def run(
        self,
        messages: Messages,
        *,
        tools: Sequence[ToolArgument],
        max_steps: int = MAX_STEPS,
        output: Any = None,
        **options: Unpack[RunOptions],
    ) -> RunReply[Any]: ...
    async def run(
        self,
        messages: Messages,
        *,
        tools: Sequence[ToolArgument],
        max_steps: int = MAX_STEPS,
        output: Any = None,
        **options: Unpack[RunOptions],
    ) -> RunReply[Any]:
        """Ask, make the calls that the model wants, tell it the results, until it answers.

        ``tools`` are functions, plain or async: a call's schema comes from the signature and the
        docstring (or from :func:`overspill.tool`), its arguments are checked, and what fails is
        told to the model. The calls of one answer run at once. All answers share the budget around
        them, and ``deadline_s`` is that of the whole run.

        The reply is the last answer, with all ``steps``. It has ``tool_calls`` of its own only for
        a tool that was given without a function. Raises ``StepsExhausted``, with the steps, and as
        :meth:`chat`.
        """
        described, functions = bound(tools)
        request = self.build(messages, tools=described, output=output, **options)
        check_count(max_steps, "max_steps")
        steps, said = await run_tools(self.collect, request, functions, max_steps=max_steps)
        last = read_reply(steps[-1].reply, reader_of(output))
        return RunReply(**fields_of(last), steps=tuple(steps), messages=said)

    async def run_request(self, request: Request) -> AsyncGenerator[ReplyChunk]:
        """As :meth:`stream`, for a request that is already built (a daemon's, say)."""
        budget = current_budget()
        if budget is None:
            answer = self._answered(request)
        else:
            answer = budget.run(request, self._answered, self._place.answerer.priced)
        async with aclosing(answer) as chunks:
            async for chunk in chunks:
                yield chunk

    async def embed(
        self,
        texts: str | Sequence[str],
        *,
        pooling: Pooling = "model",
        normalize: bool = True,
        dimensions: int | None = None,
    ) -> EmbedReply:
        """A vector for each text, by the embedding model on this device: no text leaves it.

        The model is loaded by the first call. Raises ``ContextOverflow`` for a text that is too
        long (nothing is cut) and ``UnsupportedOption`` for what the model cannot do.
        """
        return await self.run_embedding(
            build_embedding(
                texts, app=self.app, pooling=pooling, normalize=normalize, dimensions=dimensions
            )
        )

    async def run_embedding(self, request: EmbedRequest) -> EmbedReply:
        """As :meth:`embed`, for a request that is already built (a daemon's, say)."""
        budget = current_budget() or Budget()
        async with budget.deadline():
            return await self._place.ask(lambda answerer: answerer.embed(request))

    async def plan(self, messages: Messages, **options: Unpack[Options]) -> Plan:
        """Where a request would run, why, what would leave and cost; nothing is generated."""
        return await self.plan_request(self.build(messages, **options))

    async def plan_request(self, request: Request) -> Plan:
        """As :meth:`plan`, for a request that is already built."""
        plan = await self._place.ask(lambda answerer: answerer.plan(request))
        return replace(plan, request_id=request.id)

    def build(self, messages: Messages, **options: Unpack[Options]) -> Request:
        """The frozen request that the options mean; raises ``InvalidRequest`` by parameter."""
        check_names(options)  # here too: what follows has names of its own beside them
        return build_request(messages, app=self.app, floor=self.settings.privacy, **options)

    async def models(self) -> tuple[ModelCard, ...]:
        """The models that can answer now: the device's, and a verified cloud's."""
        return await self._place.ask(lambda answerer: answerer.models())

    async def availability(self) -> Availability:
        """Whether device and cloud can answer, each with a reason in words."""
        return await self._place.ask(lambda answerer: answerer.availability())

    async def receipts(self, limit: int = 100) -> tuple[ReceiptRecord, ...]:
        """The newest receipts of this user's requests to a cloud; see :func:`verify_receipt`."""
        check_count(limit, "limit", least=0)
        return await self._place.ask(lambda answerer: answerer.receipts(limit))

    async def pull(
        self, model: str | None = None, *, on_progress: OnProgress | None = None
    ) -> StoredModel:
        """Fetch a model (default: the one that the settings name) into the user's store.

        A name of the catalog, or ``owner/repository[:file]`` of the hub; nothing is asked, so ask
        first: ``overspill.modelroom.plan`` tells size, licence and digest. A device model that was
        missing is loaded then. ``on_progress`` is called in the event loop. Raises
        ``ModelNotFound``, ``ModelInvalid``, ``PullFailed``, ``DoesNotFit``, ``MissingExtra``.
        """
        if model is not None:
            check_text(model, "model")
        return await self._place.ask(lambda answerer: answerer.pull(model, on_progress))

    async def prewarm(self, messages: Messages) -> None:
        """Let the device compute what later prompts begin with (a system prompt, a document).

        Nothing leaves the device, and only this app's prompts gain by it. Raises as ``chat``.
        """
        await self.chat(messages, privacy=Privacy.DEVICE, max_tokens=1)

    async def selftest(self) -> SelfTest:
        """What works on this machine, tried in seconds: offline, and nothing leaves it."""
        return await try_all(self)

    async def openai(self, *, tcp: bool = False) -> OpenAIAccess:
        """Base URL, key and transport by which other clients reach the same models.

        The daemon's socket where the daemon answers; else an interface that this process serves
        until the client is closed, over the engines that it has. ``tcp`` asks for a loopback
        address with a token, for programs that know no Unix sockets. Raises ``MissingExtra``.
        """
        daemon = self._place.daemon
        if daemon is not None and daemon.path.exists() and not tcp:
            return through_socket(str(daemon.path))
        return await self._embedded.access(self, tcp=tcp or not HAS_UNIX_SOCKETS)

    def queue_position(self, request_id: str) -> int | None:
        """How many requests wait ahead of this one on the device; None when it isn't queued."""
        return self._place.answerer.queue_position(request_id)

    async def cloud_state(self) -> CloudState:
        """The cloud's verified evidence and cards, or the problem that keeps it out.

        Under the floor ``device`` of the settings no cloud is contacted, and the state is empty.
        Raises ``UsageError`` through a daemon, which does not hand its evidence out.
        """
        return await self._place.own("The cloud's evidence is looked at").cloud_state()

    def known_models(self) -> tuple[ModelCard, ...]:
        """As :meth:`models`, of the cloud those that were verified already; nobody is contacted.
        Raises ``UsageError`` through a daemon."""
        return self._place.own("What is known of models is looked at").known_models()

    def known_cloud(self) -> KnownCloud | None:
        """The evidence that was verified last, when, and what keeps the cloud out now; None without
        a cloud. Nobody is contacted. Raises ``UsageError`` through a daemon."""
        return self._place.own("The cloud's evidence is looked at").known_cloud()

    def spending(self, since_unix_s: int = 0) -> list[Spending]:
        """Tokens, money and energy by route and model, of all of this user's apps. Raises
        ``UsageError`` through a daemon."""
        return self._place.own("Spending is looked at").spending(since_unix_s)

    @property
    def routing_policy(self) -> RoutingPolicy:
        """The policy that decides here. Raises ``UsageError`` through a daemon, which has its own
        (``GET /overspill/v1/policy``)."""
        return self._place.own("The policy in force is looked at").routing_policy

    @property
    def admin_policy(self) -> AdminPolicy | None:
        """The administrator's rules for this machine, which win over settings and requests; None
        where there are none. Raises ``ConfigurationError`` for a file that others could write, and
        ``UsageError`` through a daemon."""
        return self._place.own("The policy in force is looked at").admin_policy

    async def enroll(self, code: str) -> int:
        """Enrol this device's key with the cloud by a one-time code.

        Sealed, and only after the node's evidence verified. Returns the Unix time until which
        the node accepts the key. Raises ``DeviceRejected`` for a code that is not good, and
        ``UsageError`` through a daemon.
        """
        return await self._place.own("A device is enrolled").enroll(code)

    @contextmanager
    def budget(
        self,
        *,
        seconds: float | None = None,
        cost: float | None = None,
        tokens: int | None = None,
        calls: int | None = None,
    ) -> Iterator[Budget]:
        """A chain of calls that shares one deadline (seconds from here), one purse, and tokens.

        What is left shapes where each call runs, and ends it; a call with nothing left raises
        ``BudgetExhausted``. ``calls`` is how many there will be, where that is known. A budget
        inside another one never has more than is left around it.
        """
        budget = Budget(
            seconds=seconds,
            cost=cost,
            tokens=tokens,
            calls=self._chains.expected if calls is None else calls,
            around=current_budget(),
            prices=self._prices,
        )
        with use_budget(budget):
            try:
                yield budget
            finally:
                self._chains.observe(budget.calls_made)

    @property
    def app(self) -> str:
        """The app's name for itself."""
        return self._app

    @property
    def settings(self) -> Settings:
        """The settings in use."""
        return self._settings

    @property
    def daemon_problem(self) -> OverspillError | None:
        """Why a daemon that was looked for is not used; None where it is, or none was wanted."""
        return self._place.daemon_problem

    @property
    def uses_daemon(self) -> bool:
        """Whether the daemon answers; False once it was lost and engines of the app's own do."""
        return self._place.daemon is not None

    @property
    def device_problem(self) -> OverspillError | None:
        """What kept the app's own device model from starting, where a cloud must do alone."""
        return self._own.device_problem

    # ----------------------------------------------------------------------------------------

    async def _answered(self, request: Request) -> AsyncGenerator[ReplyChunk]:
        """With a person's consent where that is what it takes."""
        started = False
        try:
            async with aclosing(self._place.run(request)) as chunks:
                async for chunk in chunks:
                    started = True
                    yield chunk
            return
        except ConsentRequired as error:
            granted = None if started else await self._granted(request)
            if granted is None:
                error.plan_id = request.id
                raise
        async with aclosing(self._place.run(granted)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _granted(self, request: Request) -> Request | None:
        """The request with the grant that somebody gave for it, asked once."""
        ask = self._on_consent
        if ask is None or request.grant is not None:
            return None
        plan = await self.plan_request(request)
        grant: Grant | None = await called(lambda: ask(plan))
        if grant is None:
            return None
        if grant.request_id != request.id:
            raise UsageError(
                "A grant is for another request.", mend="Grant the plan's own request_id."
            )
        return self._own.signed(replace(request, grant=grant))
