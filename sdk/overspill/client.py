"""`AsyncOverspill`: what an app imports; it builds requests, opens engines, starts sessions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from overspill.arguments import Messages, Options, build_embedding, build_request
from overspill.budget import Budget, current_budget, use_budget
from overspill.cloud_gate import CloudGate, CloudState
from overspill.config import Settings, load_settings
from overspill.conversations import Conversations
from overspill.engines.base import Engine
from overspill.engines.embedder import Embedder
from overspill.errors import ConfigurationError, EngineError, ModelNotFound, OverspillError
from overspill.gathering import Routes
from overspill.modelroom import is_pullable
from overspill.opening import open_cloud, open_device, open_embedder, open_routing_policy
from overspill.profile import DeviceMeter
from overspill.remote import RemoteEngine
from overspill.session import Session
from overspill.state.receipts import ReceiptStore
from overspill.types.card import ModelCard
from overspill.types.chat import Privacy, Request
from overspill.types.embedding import EmbedReply, EmbedRequest, Pooling
from overspill.types.reply import Availability, AvailabilityState, Reply, ReplyChunk
from overspill.types.route import Plan

if TYPE_CHECKING:
    from overspill.models.files import OnProgress
    from overspill.models.store import StoredModel


class AsyncOverspill:
    """A client for one app; use it in an ``async with`` block.

    ``settings`` default to the user's own. ``device``, ``cloud`` and ``embedder`` replace what the
    settings name, and are closed with the client.
    """

    def __init__(
        self,
        app: str = "default",
        *,
        settings: Settings | None = None,
        device: Engine | None = None,
        cloud: RemoteEngine | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        self.app = app
        self.settings = settings or load_settings()
        self._device, self._cloud, self._embedder = device, cloud, embedder
        self.device_problem: OverspillError | None = None
        """What kept the device's model from starting, where a cloud must do alone."""
        self._routes: Routes | None = None
        self._pulling = 0

    async def __aenter__(self) -> Self:
        settings = self.settings
        policy = open_routing_policy(settings)
        if self._cloud is None and settings.cloud is not None:
            self._cloud = open_cloud(settings)
        try:
            # The cloud is first contacted by a request whose floor allows it.
            self._device = await self._start_device()
        except BaseException:
            await self._close_engines()
            raise
        self._routes = Routes(
            device=self._device,
            cloud=CloudGate(self._cloud),
            policy=policy,
            floor=settings.privacy,
            receipts=ReceiptStore(settings.places.state / "receipts.sqlite"),
            conversations=Conversations(),
            meter=DeviceMeter(),
        )
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
        self._routes = None
        await self._close_engines()

    async def chat(self, messages: Messages, **options: Unpack[Options]) -> Reply:
        """A whole answer. Raises the typed error that ended it, with any text in ``partial``."""
        return await self.collect(self.build(messages, **options))

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
        """The answer in pieces, the route on each; closing the generator cancels the work."""
        async with aclosing(self.run_request(self.build(messages, **options))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def run_request(self, request: Request) -> AsyncGenerator[ReplyChunk]:
        """As :meth:`stream`, for a request that is already built (a daemon's, say)."""
        budget = current_budget()
        request = budget.shape(request) if budget else request
        async with aclosing(self._session(request).run()) as chunks:
            async for chunk in chunks:
                if chunk.finish is not None and budget:
                    budget.spend(chunk.finish, self._known_cards())
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
        if self._routes is None:
            raise RuntimeError("AsyncOverspill is not open. Use it in an async with block.")
        if self._embedder is None:
            self._embedder = open_embedder(self.settings)
        name = self._embedder.card.name
        if request.model not in (None, name):
            raise ModelNotFound.among(str(request.model), (name,))
        budget = current_budget() or Budget()
        async with budget.deadline():
            return await self._embedder.embed(request)

    async def plan(self, messages: Messages, **options: Unpack[Options]) -> Plan:
        """Where a request would run, why, what would leave and cost; nothing is generated."""
        return await self.plan_request(self.build(messages, **options))

    async def plan_request(self, request: Request) -> Plan:
        """As :meth:`plan`, for a request that is already built."""
        return await self._session(request).plan()

    def build(self, messages: Messages, **options: Unpack[Options]) -> Request:
        """The frozen request that the options mean; raises ``InvalidRequest`` by parameter."""
        return build_request(messages, app=self.app, floor=self.settings.privacy, **options)

    async def models(self) -> tuple[ModelCard, ...]:
        """The models that can answer now: the device's, and a verified cloud's."""
        routes = self._open
        device = (routes.device.card,) if routes.device else ()
        return (*device, *(await self._cloud_state()).cards)

    async def availability(self) -> Availability:
        """Whether device and cloud can answer, each with a reason in words."""
        routes = self._open
        device, why = self._absent_device(), str(self.device_problem or "No model.")
        if routes.device is not None:
            health = await routes.device.health()
            why = health.detail or " ".join(
                (f"{routes.device.card.name} is loaded.", *health.notes)
            )
            device = AvailabilityState.AVAILABLE if health.ok else AvailabilityState.UNAVAILABLE
        state = await self._cloud_state()
        if state.result is not None:
            cloud, cloud_why = (
                AvailabilityState.AVAILABLE,
                f"Proven: {state.result.assurance.name}.",
            )
        else:
            cloud, cloud_why = AvailabilityState.UNAVAILABLE, str(state.problem or "None is set.")
        return Availability(device, why, cloud, cloud_why)

    async def pull(
        self, model: str | None = None, *, on_progress: OnProgress | None = None
    ) -> StoredModel:
        """Fetch a model (default: the one that the settings name) into the user's store.

        A name of the catalog, or ``owner/repository[:file]`` of the hub; nothing is asked, so ask
        first: ``overspill.modelroom.plan`` tells size, licence and digest. A device model that was
        missing is loaded then. ``on_progress`` is called in the event loop. Raises
        ``ModelNotFound``, ``ModelInvalid``, ``PullFailed``, ``DoesNotFit``, ``MissingExtra``.
        """
        from overspill import modelroom

        routes, what = self._open, model or self.settings.model
        self._pulling += 1
        try:
            planned = await modelroom.plan(self.settings, what)
            stored = await modelroom.pull(self.settings, planned, on_progress=on_progress)
        finally:
            self._pulling -= 1
        if routes.device is None and what == self.settings.model:
            self._device = await self._start_device()
            self._routes = replace(routes, device=self._device)
        return stored

    async def prewarm(self, messages: Messages) -> None:
        """Let the device compute what later prompts begin with (a system prompt, a document).

        Nothing leaves the device, and only this app's prompts gain by it. Raises as ``chat``.
        """
        await self.chat(messages, privacy=Privacy.DEVICE, max_tokens=1)

    async def cloud_state(self) -> CloudState:
        """The cloud's verified evidence and cards, or the problem that keeps it out.

        Under the floor ``device`` of the settings no cloud is contacted, and the state is empty.
        """
        return await self._cloud_state()

    async def enroll(self, code: str) -> int:
        """Enrol this device's key with the cloud by a one-time code.

        Sealed, and only after the node's evidence verified. Returns the Unix time until which
        the node accepts the key. Raises ``DeviceRejected`` for a code that is not good.
        """
        if self._cloud is None:
            raise ConfigurationError("There is no cloud to enrol with.", mend="Set one first.")
        return await self._cloud.enroll(code)

    @contextmanager
    def budget(self, *, seconds: float | None = None, cost: float | None = None) -> Iterator[None]:
        """A chain of calls that shares one deadline (seconds from here) and one purse.

        Inside, each call gets what is left; a call with nothing left raises ``BudgetExhausted``.
        """
        with use_budget(Budget(seconds=seconds, cost=cost)):
            yield

    # ----------------------------------------------------------------------------------------

    @property
    def _open(self) -> Routes:
        if self._routes is None:
            raise RuntimeError("AsyncOverspill is not open. Use it in an async with block.")
        return self._routes

    def _known_cards(self) -> tuple[ModelCard, ...]:
        """Cards that are here already: to settle a bill nobody is asked anything."""
        routes = self._open
        device = (routes.device.card,) if routes.device else ()
        return (*device, *routes.cloud.known_cards)

    async def _cloud_state(self) -> CloudState:
        floor = self.settings.privacy.tightened_by(self._open.policy.floor)
        return CloudState() if floor is Privacy.DEVICE else await self._open.cloud.state()

    def _session(self, request: Request) -> Session:
        routes = self._open
        if routes.device is None and routes.cloud.engine is None and self.device_problem:
            raise self.device_problem
        return Session(routes, request)

    def _absent_device(self) -> AvailabilityState:
        if self._pulling:
            return AvailabilityState.DOWNLOADING
        absent = isinstance(self.device_problem, ModelNotFound)
        if absent and is_pullable(self.settings.model):
            return AvailabilityState.DOWNLOADABLE
        return AvailabilityState.UNAVAILABLE

    async def _start_device(self) -> Engine | None:
        """The device's engine; without one a cloud alone must do, without both it is an error,
        unless the model could be pulled: then every request says how."""
        try:
            engine = self._device or open_device(self.settings)
            await engine.start()
        except OverspillError as error:
            self.device_problem = error
            if self._cloud is None and self._absent_device() is AvailabilityState.UNAVAILABLE:
                raise
            return None
        self.device_problem = None
        return engine

    async def _close_engines(self) -> None:
        for engine in (self._device, self._cloud, self._embedder):
            if engine is not None:
                await engine.aclose()
