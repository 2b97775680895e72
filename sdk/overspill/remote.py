"""An attested cloud as an engine: the same ``generate()`` as a local one.

One request in numbered steps: (1) fetch the node's evidence bundle; (2) let ``trust.verifier``
return an :class:`~overspill.types.evidence.AttestationResult`, or raise; (3) seal to the key in
that result, which exists nowhere else; (4) encode by ``wire``; (5) stream sealed frames and open
them. Steps 1 and 2 are kept until the evidence runs out.

Text is handed on as it comes and is unconfirmed until FINAL; the chunk with ``finish`` follows
only when FINAL, the transcript's hash and the receipt have verified. A trust error is never
retried here; a lost key is fetched and *verified* again, once.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import anyio

from overspill.continuation import Continuation
from overspill.engines.base import Engine, EngineHealth
from overspill.errors import (
    BusyError,
    ConnectFailed,
    DeadlineExceeded,
    EngineDied,
    EngineError,
    KeyUnknown,
    OverspillError,
    StreamCorrupt,
    TransportError,
    UsageError,
)
from overspill.exchange import (
    Exchange,
    ExchangeLimits,
    Incoming,
    Migrated,
    parsed,
    seal_request,
)
from overspill.locating import Locator
from overspill.picking import pick
from overspill.receipt_records import KeptEvidence, make_record
from overspill.replica import Attested, Replica, by_rendezvous
from overspill.sealing.frames import FrameType
from overspill.sealing.rotation import sign_rotation
from overspill.sealing.signing import DeviceSigner
from overspill.state.log_state import LogStateStore
from overspill.transport.base import Transport
from overspill.transport.guard import Guard, GuardOptions, RetryBudget
from overspill.trust.policy import TrustPolicy
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Request
from overspill.types.evidence import AttestationResult, EvidenceBundle
from overspill.types.reply import ReceiptRecord
from overspill.wire import plaintext

_T = TypeVar("_T")
QUICK_RESUME_S = 0.7
MOVABLE = (BusyError, EngineError, TransportError)
"""After these another replica may go on; a trust error is final, a usage error fails anywhere."""


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """``model`` is the node's name for the model that is wanted; None is its first."""

    model: str | None = None
    limits: ExchangeLimits = field(default_factory=ExchangeLimits)
    refresh_before_s: int = 30
    max_records: int = 256
    guard: GuardOptions = field(default_factory=GuardOptions)
    max_tries: int = 4
    """Of one request, on all replicas together."""
    retry_pause_s: float = 0.05
    rest_wait_s: float = 2.0
    """So long is waited for nodes of a fleet that are gone, where nobody else may be asked."""


@dataclass(frozen=True, slots=True)
class RemoteRecord:
    """What is known of a finished request besides its answer.

    ``bytes_sent`` is all that left for it: heads, secrets and sealed frames. ``bundle`` and
    ``result`` are the evidence and the verdict under which it was sealed.
    """

    request_id: str
    bytes_sent: int
    receipt: ReceiptRecord
    bundle: EvidenceBundle
    result: AttestationResult


class RemoteEngine(Engine):
    """An engine behind one transport, or behind one for each of several replicas: when one fails
    in mid-answer, another goes on from the text that came.

    ``signer`` is the enrolled device's key, ``clock`` gives Unix seconds, ``log_state`` keeps what
    was seen of the log that releases are in. With ``open_road`` the replicas are asked where the
    others are, now and then, and those are used.

    Raises ``EvidenceRejected`` before anything leaves; from the stream ``DeviceRejected``,
    ``StreamCorrupt``, ``StreamTruncated``, ``ReceiptInvalid``; ``TransportError`` for the road.
    Each carries the text so far in ``partial``.
    """

    def __init__(
        self,
        transport: Transport | Sequence[Transport],
        policy: TrustPolicy,
        signer: DeviceSigner,
        options: RemoteOptions | None = None,
        *,
        clock: Callable[[], float] = time.time,
        log_state: LogStateStore | None = None,
        open_road: Callable[[str], Transport] | None = None,
    ) -> None:
        self._signer = signer
        self._options = options or RemoteOptions()
        self._clock = clock
        roads = transport if isinstance(transport, Sequence) else (transport,)
        is_fleet = len(roads) > 1 or open_road is not None
        guard = self._options.guard
        if is_fleet:
            # Streams wait for the first node that is back: it is looked for each second.
            guard = replace(guard, max_open_s=guard.min_open_s)

        def behind(road: Transport) -> Replica:
            return Replica(
                road,
                policy,
                Guard(guard, time.monotonic),
                clock=clock,
                log_state=log_state,
                refresh_before_s=self._options.refresh_before_s,
            )

        replicas = [behind(road) for road in roads]
        self._limits = self._options.limits
        if is_fleet:
            # Where there is another one, a node that is gone is not waited for.
            quick = min(self._limits.resume_timeout_s, QUICK_RESUME_S)
            self._limits = replace(self._limits, resume_timeout_s=quick)
        # Random, and forgotten with this object: it names nobody.
        self._sticky = os.urandom(16)
        self._replicas = by_rendezvous(replicas, self._sticky)
        self._locator = None
        if open_road is not None:
            self._locator = Locator(replicas, lambda where: behind(open_road(where)), clock)
        self._retries = RetryBudget(self._options.guard)
        self._moves: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._records: OrderedDict[str, RemoteRecord] = OrderedDict()
        self._sent: OrderedDict[str, int] = OrderedDict()

    # What others ask --------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """Where the preferred replica is."""
        return self._replicas[0].address

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of every replica that a request may go to."""
        return tuple(replica.address for replica in self._replicas)

    @property
    def card(self) -> ModelCard:
        """The signed card of the model that answers; before :meth:`start` only its name."""
        wanted = self._options.model
        for replica in self._replicas:
            for card in replica.cards[1] if replica.cards else ():
                if wanted in (None, card.name):
                    return card
        return ModelCard(name=wanted or "cloud", context=0, runtime="remote")

    async def start(self) -> None:
        """Verify the node and fetch its cards. Raises what :meth:`cards` raises."""
        await self._locate()
        await self.cards()

    async def attest(self) -> AttestationResult:
        """The verified result, from memory while it holds.

        Raises ``EvidenceRejected``, or ``TransportError`` when the node cannot be reached.
        """
        return (await self._verified()).result

    async def cards(self) -> tuple[ModelCard, ...]:
        """The node's model cards: signed by the attested receipt key, and true to its evidence.

        Raises as :meth:`attest`, and ``ReceiptInvalid`` for a signature that is not the node's.
        """
        return await self._on_any(lambda replica: replica.fetch_cards())

    async def count_prompt_tokens(self, request: Request) -> int | None:
        """Unknown: to have them counted, the prompt would have to leave first."""
        return None

    async def health(self) -> EngineHealth:
        """Whether verified evidence can be had."""
        try:
            result = await self.attest()
        except OverspillError as error:
            return EngineHealth(ok=False, detail=error.code)
        return EngineHealth(ok=True, detail=result.assurance.name)

    def record(self, request_id: str) -> RemoteRecord:
        """What is known of a finished request; there from its ``finish`` chunk on."""
        try:
            return self._records[request_id]
        except KeyError:
            raise UsageError(
                f"No finished request '{request_id}' is remembered.",
                mend=f"The last {self._options.max_records} are.",
            ) from None

    def bytes_sent(self, request_id: str) -> int:
        """Bytes that left for a request so far, finished or not; 0 when nothing did."""
        return self._sent.get(request_id, 0)

    def moves(self, request_id: str) -> tuple[str, ...]:
        """Where a request went on when a replica failed it, and why; empty when none did."""
        return self._moves.get(request_id, ())

    async def enroll(self, code: str, *, label: str = "", not_after_unix: int = 0) -> int:
        """Enrol this device with a one-time code, sealed like everything else.

        Returns the Unix time until which the node accepts the key. Raises ``DeviceRejected``.
        """
        enrolment = plaintext.Enrolment(self._signer.public_der, code, not_after_unix, label)
        return await self._enrol(enrolment, self._signer)

    async def rotate(self, new: DeviceSigner, *, not_after_unix: int) -> int:
        """Go on under a new key: both keys sign, the node confirms, and from then on requests are
        signed by ``new``. Those under way are not touched, and the old key holds for a day more.

        Safe to repeat with the same ``new`` when an answer was lost. Returns the Unix time until
        which the node accepts the new key. Raises ``DeviceRejected``.
        """
        signed = sign_rotation(
            self._signer, new, not_after_unix=not_after_unix, unix_ms=self._unix_ms()
        )
        enrolment = plaintext.Enrolment(new.public_der, "", not_after_unix, rotation=signed)
        until = await self._enrol(enrolment, new)
        self._signer = new
        return until

    async def _enrol(self, enrolment: plaintext.Enrolment, signer: DeviceSigner) -> int:
        body = plaintext.enrolment_to_bytes(enrolment)
        return await self._on_any(lambda replica: self._enrol_at(replica, body, signer))

    async def _enrol_at(self, replica: Replica, body: bytes, signer: DeviceSigner) -> int:
        attested = await replica.verified()
        outgoing = seal_request(attested.result, signer, body, self._unix_ms())
        call = replica.transport.enroll(outgoing.head, outgoing.each_frame())
        async with aclosing(Incoming(call, outgoing.keys, self._options.limits)) as incoming:
            await incoming.begin()
            frame = await incoming.frame()
        if frame.type is FrameType.ERROR:
            _, event = parsed(plaintext.event_from_bytes, frame.plaintext)
            if isinstance(event, OverspillError):
                raise event
        if frame.type is not FrameType.FINAL:
            raise StreamCorrupt("An enrolment is answered by one final frame.")
        return parsed(plaintext.enrolled_from_bytes, frame.plaintext).not_after_unix

    async def aclose(self) -> None:
        """Close the roads."""
        for replica in self._locator.all if self._locator else self._replicas:
            await replica.transport.aclose()

    # One request, in calling order ------------------------------------------------------------

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        if request.model is None:
            request = replace(request, model=self._options.model)
        await self._locate()
        journey, failed, tries = Continuation(request), list[Replica](), 0
        self._retries.earn()
        while True:
            try:
                replica = await pick(
                    lambda: self._replicas, failed, wait_s=self._options.rest_wait_s
                )
            except BusyError as error:
                error.partial = journey.text
                raise
            try:
                async with aclosing(self._on(replica, journey)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
            except MOVABLE as error:
                failed.append(replica)
                await self._locate_without(replica, error)
                tries += not _may_come_back(journey, error)
                if not self._may_move(journey, replica, error, tries):
                    error.partial = journey.text
                    raise
                self._move(journey, replica, error)
                is_untried = any(one not in failed for one in self._replicas)
                at_once = journey.text and is_untried
                await anyio.sleep(0 if at_once else self._pause_s(len(failed)))
            except OverspillError as error:
                error.partial = journey.text
                raise

    async def _locate(self) -> None:
        """Learn of replicas that came and went; the session's own value keeps its order."""
        if self._locator is not None:
            known = self._replicas
            self._learn(known, await self._locator.refresh(known))

    async def _locate_without(self, lost: Replica, error: OverspillError) -> None:
        """The same where a replica is gone, or is about to be."""
        is_gone = isinstance(error, (TransportError, EngineDied)) or _is_draining(error)
        if self._locator is not None and is_gone:
            known = self._replicas
            self._learn(known, await self._locator.refresh_without(lost, known))

    def _learn(self, known: Sequence[Replica], found: Sequence[Replica]) -> None:
        if found is not known:  # another request may have learnt something meanwhile
            self._replicas = by_rendezvous(found, self._sticky)

    def _may_move(
        self, journey: Continuation, replica: Replica, error: OverspillError, tries: int
    ) -> bool:
        """Whether another try is in order. What has begun goes on without asking the budget: that
        bounds tries for which nobody has worked yet. Nodes that are not there may come back for as
        long as others are waited for."""
        stalled_s = journey.stalled_s()
        if isinstance(error, DeadlineExceeded) or tries >= self._options.max_tries:
            return False
        if _may_come_back(journey, error) and stalled_s >= self._options.rest_wait_s:
            return False
        if _is_about_device(error):
            return False  # every replica counts the same
        alone = all(one is replica for one in self._replicas)
        if journey.text or isinstance(error, Migrated):
            return journey.is_possible and not alone
        if alone and not isinstance(error, TransportError):
            return False  # another try at the same node is for the road only
        # Who was not there, or is leaving, did nothing for it: to ask the next one is no more work.
        cost_nothing = isinstance(error, ConnectFailed) or _is_draining(error)
        return (cost_nothing and not alone) or self._retries.spend()

    def _pause_s(self, tries: int) -> float:
        """Before the next try: longer each time where it is the same node, whose link may be down
        for a moment."""
        return self._options.retry_pause_s * (2**tries if len(self._replicas) == 1 else 1)

    def _move(self, journey: Continuation, replica: Replica, error: OverspillError) -> None:
        journey.changes.append(f"cloud {replica.address} -> cloud: {error.code}")
        self._keep(self._moves, journey.original.id, tuple(journey.changes))

    async def _on(self, replica: Replica, journey: Continuation) -> AsyncGenerator[Chunk]:
        """The rest of the answer from one replica; its guard hears how that went."""
        taken = False
        replica.streams += 1
        try:
            attested, exchange = await self._begin(replica, journey.request())
            before = journey.tokens
            try:
                async with aclosing(exchange.chunks()) as chunks:
                    async for chunk in chunks:
                        if not taken:
                            taken = True
                            replica.guard.accepted()
                        if chunk.finish is not None:
                            self._remember(journey.original.id, replica, attested, exchange)
                            chunk = _with_tokens(chunk, before)
                        journey.note(chunk)
                        yield chunk
            finally:
                await exchange.aclose()
        except BusyError as error:
            if _is_draining(error):
                replica.guard.leaving()
            elif not _is_about_device(error):
                replica.guard.refused()
            raise
        except (TransportError, EngineDied):
            replica.guard.failed()
            raise
        finally:
            replica.streams -= 1

    async def _begin(self, replica: Replica, request: Request) -> tuple[Attested, Exchange]:
        attested = await replica.verified()
        try:
            return attested, await self._send(replica, attested, request)
        except KeyUnknown:
            # The node changed its key since; it opened nothing. What it shows now is verified
            # like a stranger's, and a second refusal is final.
            replica.forget(attested)
        attested = await replica.verified()
        return attested, await self._send(replica, attested, request)

    async def _verified(self) -> Attested:
        return await self._on_any(lambda replica: replica.verified())

    async def _on_any(self, ask: Callable[[Replica], Awaitable[_T]]) -> _T:
        """What the first replica that can be reached answers."""
        *others, last = sorted(self._replicas, key=lambda replica: replica.guard.is_open)
        for replica in others:
            try:
                return await ask(replica)
            except TransportError:
                replica.guard.failed()
        return await ask(last)

    async def _send(self, replica: Replica, attested: Attested, request: Request) -> Exchange:
        body = plaintext.request_to_bytes(request)  # (4)
        outgoing = seal_request(attested.result, self._signer, body, self._unix_ms())  # (3)
        exchange = Exchange(  # (5)
            replica.transport,
            attested.result,
            attested.models,
            outgoing,
            self._limits,
            model=request.model,
        )
        size = outgoing.size_bytes
        try:
            await exchange.begin()
        except BaseException as error:
            size = 0 if isinstance(error, ConnectFailed) else size  # nobody was there to take it
            await exchange.aclose()
            raise
        finally:
            self._keep(self._sent, request.id, self.bytes_sent(request.id) + size)
        return exchange

    def _remember(
        self, request_id: str, replica: Replica, attested: Attested, exchange: Exchange
    ) -> None:
        record = RemoteRecord(
            request_id=request_id,
            bytes_sent=self.bytes_sent(request_id),
            receipt=self._receipt_record(request_id, replica.address, attested, exchange),
            bundle=attested.bundle,
            result=attested.result,
        )
        self._keep(self._records, request_id, record)

    def _receipt_record(
        self, request_id: str, address: str, attested: Attested, exchange: Exchange
    ) -> ReceiptRecord:
        if exchange.claims is None or exchange.receipt is None:
            raise UsageError("Only a confirmed exchange has a receipt.")
        context, keys = attested.context, exchange.outgoing.keys
        return make_record(
            request_id,
            address,
            exchange.receipt,
            exchange.claims,
            attested.result,
            th=keys.th,
            salt=keys.commitment_salt,
            kept=KeptEvidence(
                attested.bundle, context.nonce or b"", context.address, context.is_local
            ),
            device=self._signer,
        )

    def _keep(self, memory: OrderedDict[str, Any], request_id: str, value: object) -> None:
        memory[request_id] = value
        memory.move_to_end(request_id)
        while len(memory) > self._options.max_records:
            memory.popitem(last=False)

    def _unix_ms(self) -> int:
        return int(self._clock() * 1000)


def _may_come_back(journey: Continuation, error: OverspillError) -> bool:
    """Whether nobody was there to take the rest of an answer: that costs no try, for who began it
    is being replaced."""
    return bool(journey.text) and isinstance(error, ConnectFailed)


def _is_draining(error: OverspillError) -> bool:
    return isinstance(error, BusyError) and error.reason == "DRAINING"


def _is_about_device(error: OverspillError) -> bool:
    """Whether a node had room, and this device has had its share."""
    return isinstance(error, BusyError) and error.reason == "QUOTA"


def _with_tokens(chunk: Chunk, before: int) -> Chunk:
    """The end of a continuation counts what came before it, too."""
    if chunk.finish is None or not before:
        return chunk
    usage = chunk.finish.usage
    usage = replace(usage, completion_tokens=usage.completion_tokens + before)
    return replace(chunk, finish=replace(chunk.finish, usage=usage))
