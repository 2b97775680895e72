"""Answers by this process's own means: a device engine in its worker, a cloud, a policy."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from overspill.administered import administered, check_request, refused
from overspill.cloud_gate import CloudGate, CloudState, KnownCloud
from overspill.config import Settings
from overspill.conversations import Conversations
from overspill.engines.base import Engine
from overspill.engines.embedder import Embedder
from overspill.errors import ConfigurationError, ModelNotFound, NotOpen, OverspillError
from overspill.gathering import Routes
from overspill.in_time import in_time
from overspill.modelroom import is_pullable
from overspill.opening import (
    open_cloud,
    open_device,
    open_embedder,
    open_named_third_party,
    open_routing_policy,
)
from overspill.policy_lock import AdminPolicy, policy_lock
from overspill.profile import DeviceMeter
from overspill.providers.granted import GrantedEngine
from overspill.remote import RemoteEngine
from overspill.routing.policy import RoutingPolicy
from overspill.session import Session
from overspill.state.receipts import ReceiptStore
from overspill.state.spending import Spending, SpendingStore
from overspill.types.card import ModelCard
from overspill.types.chat import Privacy, Request
from overspill.types.embedding import EmbedReply, EmbedRequest
from overspill.types.reply import Availability, AvailabilityState, ReceiptRecord, ReplyChunk
from overspill.types.route import Plan

if TYPE_CHECKING:
    from overspill.models.files import OnProgress
    from overspill.models.store import StoredModel


class InProcess:
    """The engines and rules that ``settings`` name; ``device``, ``cloud`` and ``embedder`` replace
    what they name, and are closed with this, as ``third_party`` is. ``open_engine`` opens the
    device's engine in a way of its own."""

    def __init__(
        self,
        settings: Settings,
        *,
        device: Engine | None = None,
        cloud: RemoteEngine | None = None,
        embedder: Embedder | None = None,
        third_party: GrantedEngine | None = None,
        open_engine: Callable[[Settings], Engine] = open_device,
    ) -> None:
        self._settings = settings
        self._open_engine = open_engine
        self._lock = policy_lock(settings)
        self._device, self._cloud, self._embedder = device, cloud, embedder
        self._third_party = third_party
        self.device_problem: OverspillError | None = None
        """What kept the device's model from starting, where a cloud must do alone."""
        self._routes: Routes | None = None
        self._pulling = 0

    async def open(self) -> None:
        """Start the device's engine. Raises what it raises, unless a cloud can do alone."""
        settings = self._settings
        policy = open_routing_policy(settings)
        if self._cloud is None and settings.cloud is not None:
            self._cloud = open_cloud(settings)
        if self._third_party is None:
            self._third_party = open_named_third_party(settings)
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
            meter=DeviceMeter(settings.places.state / "pace.json"),
            spending=SpendingStore(settings.places.state / "spending.sqlite"),
            third_party=self._third_party,
        )

    def signed(self, request: Request) -> Request:
        """The request with its grant signed, where a third party is there to want that."""
        return self._third_party.signed(request) if self._third_party else request

    async def aclose(self) -> None:
        """Cancel what runs and free the engines. May be called twice."""
        if self._routes is not None:
            self._routes.meter.save()
            try:
                self._routes.spending.flush()
            except ConfigurationError as error:  # the engines are freed all the same
                warnings.warn(f"{error}", stacklevel=2)
        self._routes = None
        await self._close_engines()

    async def run(self, request: Request) -> AsyncGenerator[ReplyChunk]:
        """The answer in pieces."""
        answer = self._session(request).run()
        if request.deadline_s is not None or request.first_token_s is not None:
            answer = in_time(request, answer)
        async with aclosing(answer) as chunks:
            async for chunk in chunks:
                yield chunk

    async def plan(self, request: Request) -> Plan:
        """Where the request would run."""
        return await self._session(request).plan()

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """The vectors; the first call loads the model."""
        if self._embedder is None:
            self._embedder = open_embedder(self._settings)
        name = self._embedder.card.name
        if request.model not in (None, name):
            raise ModelNotFound.among(str(request.model), (name,))
        policy = self.admin_policy
        if policy is not None and not policy.allows_model(name):
            raise refused(policy, f"does not allow the model '{name}'")
        return await self._embedder.embed(request)

    async def models(self) -> tuple[ModelCard, ...]:
        """The device's model, and a verified cloud's."""
        return (*self._device_cards(), *(await self.cloud_state()).cards)

    async def priced(self, model: str) -> tuple[ModelCard, ...]:
        """Cards that are here already: to settle a bill nobody is asked anything."""
        return (*self._device_cards(), *self._open.cloud.known_cards)

    async def availability(self) -> Availability:
        """The device's and the cloud's state."""
        routes = self._allowed
        device, why = self._absent_device(), str(self.device_problem or "No model.")
        if routes.device is not None:
            health = await routes.device.health()
            why = health.detail or " ".join(
                (f"{routes.device.card.name} is loaded.", *health.notes)
            )
            device = AvailabilityState.AVAILABLE if health.ok else AvailabilityState.UNAVAILABLE
        state = await self.cloud_state()
        if state.result is not None:
            cloud, cloud_why = (
                AvailabilityState.AVAILABLE,
                f"Proven: {state.result.assurance.name}.",
            )
        else:
            cloud, cloud_why = (
                AvailabilityState.UNAVAILABLE,
                str(state.problem or "No cloud is set."),
            )
        return Availability(device, why, cloud, cloud_why)

    async def receipts(self, limit: int) -> tuple[ReceiptRecord, ...]:
        """From this user's store."""
        return tuple(self._open.receipts.list(limit))

    async def pull(self, model: str | None, on_progress: OnProgress | None) -> StoredModel:
        """Fetch a model; the device's own is loaded then, where it was missing."""
        from overspill import modelroom

        routes, what = self._open, model or self._settings.model
        self._pulling += 1
        try:
            planned = await modelroom.plan(self._settings, what)
            stored = await modelroom.pull(self._settings, planned, on_progress=on_progress)
        finally:
            self._pulling -= 1
        if routes.device is None and what == self._settings.model:
            self._device = await self._start_device()
            self._routes = replace(routes, device=self._device)
        return stored

    def queue_position(self, request_id: str) -> int | None:
        """As the device's engine says."""
        device = self._open.device
        return None if device is None else device.queue_position(request_id)

    async def cloud_state(self) -> CloudState:
        """The cloud's verified state; empty under the floor ``device``."""
        return CloudState() if self._stays else await self._allowed.cloud.state()

    @property
    def admin_policy(self) -> AdminPolicy | None:
        """The administrator's rules as they are now; None where there are none. Raises
        ``ConfigurationError`` for a file that nobody should trust."""
        return self._lock.current()

    def known_models(self) -> tuple[ModelCard, ...]:
        """The device's model, and those of a cloud that was verified; nobody is contacted."""
        known = self._open.cloud.known()
        is_out = known is None or known.problem is not None or self._stays
        return (*self._device_cards(), *(() if is_out else self._allowed.cloud.known_cards))

    def known_cloud(self) -> KnownCloud | None:
        """What is known of the cloud; nobody is contacted."""
        return self._open.cloud.known()

    def spending(self, since_unix_s: int) -> list[Spending]:
        """What answers took, by route and model."""
        return self._open.spending.sums(since_unix_s)

    @property
    def routing_policy(self) -> RoutingPolicy:
        """The policy that is in force."""
        return self._open.policy

    async def enroll(self, code: str) -> int:
        """Enrol this device's key with the cloud."""
        if self._cloud is None:
            raise ConfigurationError("There is no cloud to enrol with.", mend="Set one first.")
        return await self._cloud.enroll(code)

    # ----------------------------------------------------------------------------------------

    @property
    def _open(self) -> Routes:
        if self._routes is None:
            raise NotOpen("AsyncOverspill is not open.", mend="Use it in an async with block.")
        return self._routes

    @property
    def _allowed(self) -> Routes:
        """What the administrator leaves of the routes."""
        routes, policy = self._open, self.admin_policy
        return routes if policy is None else administered(routes, policy, names_model=True)

    @property
    def _stays(self) -> bool:
        """Whether the floor of all requests is the device."""
        routes = self._allowed
        return routes.floor.tightened_by(routes.policy.floor) is Privacy.DEVICE

    def _device_cards(self) -> tuple[ModelCard, ...]:
        device = self._allowed.device
        return () if device is None else (device.card,)

    def _session(self, request: Request) -> Session:
        routes = self._open
        if routes.device is None and routes.cloud.engine is None and self.device_problem:
            raise self.device_problem
        policy = self.admin_policy
        if policy is None:
            return Session(routes, request)
        check_request(request, policy)
        left = administered(routes, policy, names_model=request.model is not None)
        if routes.device is not None and left.device is None and left.cloud.engine is None:
            raise refused(policy, f"does not allow the model '{routes.device.card.name}'")
        return Session(left, request)

    def _absent_device(self) -> AvailabilityState:
        if self._pulling:
            return AvailabilityState.DOWNLOADING
        absent = isinstance(self.device_problem, ModelNotFound)
        if absent and is_pullable(self._settings.model):
            return AvailabilityState.DOWNLOADABLE
        return AvailabilityState.UNAVAILABLE

    async def _start_device(self) -> Engine | None:
        """The device's engine; without one a cloud alone must do, without both it is an error,
        unless the model could be pulled: then every request says how."""
        try:
            engine = self._device or self._open_engine(self._settings)
            await engine.start()
        except OverspillError as error:
            self.device_problem = error
            if self._cloud is None and self._absent_device() is AvailabilityState.UNAVAILABLE:
                raise
            return None
        self.device_problem = None
        return engine

    async def _close_engines(self) -> None:
        for engine in (self._device, self._cloud, self._embedder, self._third_party):
            if engine is not None:
                await engine.aclose()
