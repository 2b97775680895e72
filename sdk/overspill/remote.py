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
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import anyio

from overspill.engines.base import Engine, EngineHealth
from overspill.errors import (
    ConnectFailed,
    EvidenceRejected,
    KeyUnknown,
    OverspillError,
    ReceiptInvalid,
    StreamCorrupt,
    UsageError,
)
from overspill.exchange import Exchange, ExchangeLimits, Incoming, parsed, seal_request
from overspill.log_watch import verify_remembering
from overspill.receipt_records import KeptEvidence, make_record
from overspill.sealing.frames import FrameType
from overspill.sealing.receipt import check_cards
from overspill.sealing.rotation import sign_rotation
from overspill.sealing.signing import DeviceSigner
from overspill.state.log_state import LogStateStore
from overspill.transport.base import Transport
from overspill.trust.freshness import NONCE_BYTES
from overspill.trust.measured import MeasuredLog
from overspill.trust.policy import TrustPolicy
from overspill.trust.verifier import Context, verify
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Request
from overspill.types.evidence import AttestationResult, EvidenceBundle
from overspill.types.reply import ReceiptRecord
from overspill.wire import plaintext


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """``model`` is the node's name for the model that is wanted; None is its first."""

    model: str | None = None
    limits: ExchangeLimits = field(default_factory=ExchangeLimits)
    refresh_before_s: int = 30
    max_records: int = 256


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


@dataclass(frozen=True, slots=True)
class _Attested:
    """Verified evidence, and the models (and ``MODEL/ADAPTER``) that it names, by SHA-256."""

    result: AttestationResult
    bundle: EvidenceBundle
    models: dict[str, bytes]
    context: Context


class RemoteEngine(Engine):
    """An engine behind a transport. ``signer`` is the enrolled device's key, ``clock`` gives
    Unix seconds, ``log_state`` keeps what was seen of the log that releases are in.

    Raises ``EvidenceRejected`` before anything leaves; from the stream ``DeviceRejected``,
    ``StreamCorrupt``, ``StreamTruncated``, ``ReceiptInvalid``; ``TransportError`` for the road.
    Each carries the text so far in ``partial``.
    """

    def __init__(
        self,
        transport: Transport,
        policy: TrustPolicy,
        signer: DeviceSigner,
        options: RemoteOptions | None = None,
        *,
        clock: Callable[[], float] = time.time,
        log_state: LogStateStore | None = None,
    ) -> None:
        self._log_state = log_state
        self._transport = transport
        self._policy = policy
        self._signer = signer
        self._options = options or RemoteOptions()
        self._clock = clock
        self._attesting = anyio.Lock()
        self._attested: _Attested | None = None
        self._cards: tuple[bytes, tuple[ModelCard, ...]] | None = None
        self._records: OrderedDict[str, RemoteRecord] = OrderedDict()
        self._sent: OrderedDict[str, int] = OrderedDict()

    # What others ask --------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """Where the node is."""
        return self._transport.address

    @property
    def card(self) -> ModelCard:
        """The signed card of the model that answers; before :meth:`start` only its name."""
        wanted = self._options.model
        for card in self._cards[1] if self._cards else ():
            if wanted in (None, card.name):
                return card
        return ModelCard(name=wanted or "cloud", context=0, runtime="remote")

    async def start(self) -> None:
        """Verify the node and fetch its cards. Raises what :meth:`cards` raises."""
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
        attested = await self._verified()
        if self._cards is not None and self._cards[0] == attested.result.nkc_sha256:
            return self._cards[1]
        try:
            return await self._fetch_cards(attested)
        except ReceiptInvalid:
            # Signed under a configuration that the node renewed since? Then what it shows now is
            # verified like a stranger's, and a second failure is final.
            self._forget(attested)
        return await self._fetch_cards(await self._verified())

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
        attested = await self._verified()
        body = plaintext.enrolment_to_bytes(enrolment)
        outgoing = seal_request(attested.result, signer, body, self._unix_ms())
        call = self._transport.enroll(outgoing.head, outgoing.each_frame())
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
        """Close the road."""
        await self._transport.aclose()

    # One request, in calling order ------------------------------------------------------------

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        if request.model is None:
            request = replace(request, model=self._options.model)
        attested, exchange = await self._begin(request)
        text: list[str] = []
        try:
            async with aclosing(exchange.chunks()) as chunks:
                async for chunk in chunks:
                    text.append(chunk.text)
                    if chunk.finish is not None:
                        self._remember(request.id, attested, exchange)
                    yield chunk
        except OverspillError as error:
            error.partial = "".join(text)
            raise
        finally:
            await exchange.aclose()

    async def _begin(self, request: Request) -> tuple[_Attested, Exchange]:
        attested = await self._verified()
        try:
            return attested, await self._send(attested, request)
        except KeyUnknown:
            # The node changed its key since; it opened nothing. What it shows now is verified
            # like a stranger's, and a second refusal is final.
            self._forget(attested)
        attested = await self._verified()
        return attested, await self._send(attested, request)

    async def _fetch_cards(self, attested: _Attested) -> tuple[ModelCard, ...]:
        result = attested.result
        data, signature = await self._transport.get_cards()
        check_cards(data, signature, result.receipt_public_key, result.nkc_sha256)
        cards = parsed(plaintext.cards_from_bytes, data)
        _check_digests(cards, attested.models)
        self._cards = (result.nkc_sha256, cards)
        return cards

    def _forget(self, attested: _Attested) -> None:
        if self._attested is attested:
            self._attested = None

    async def _verified(self) -> _Attested:
        async with self._attesting:
            now = int(self._clock())
            known = self._attested
            if known is None or known.result.accepted_until <= now + self._margin_s(known):
                self._attested = known = await self._fetch_and_verify(now)
            return known

    def _margin_s(self, known: _Attested) -> int:
        # A little early, but evidence that is short-lived by policy still counts while it holds.
        lifetime = known.result.accepted_until - known.result.not_before
        return min(self._options.refresh_before_s, lifetime // 10)

    async def _fetch_and_verify(self, now_unix: int) -> _Attested:
        nonce = os.urandom(NONCE_BYTES) if self._policy.freshness == "nonce" else None
        if nonce is None:  # (1)
            bundle = await self._transport.get_bundle()
        else:
            bundle = await self._transport.challenge(nonce)
        context = Context(
            now_unix=now_unix,
            address=self._transport.address,
            is_local=self._transport.is_local,
            nonce=nonce,
        )
        if self._log_state is None:  # (2)
            result = verify(bundle, context, self._policy)
        else:
            result = verify_remembering(bundle, context, self._policy, self._log_state)
        return _Attested(result, bundle, _digests(MeasuredLog.decode(bundle.measured_log)), context)

    async def _send(self, attested: _Attested, request: Request) -> Exchange:
        body = plaintext.request_to_bytes(request)  # (4)
        outgoing = seal_request(attested.result, self._signer, body, self._unix_ms())  # (3)
        exchange = Exchange(  # (5)
            self._transport,
            attested.result,
            attested.models,
            outgoing,
            self._options.limits,
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

    def _remember(self, request_id: str, attested: _Attested, exchange: Exchange) -> None:
        record = RemoteRecord(
            request_id=request_id,
            bytes_sent=self.bytes_sent(request_id),
            receipt=self._receipt_record(request_id, attested, exchange),
            bundle=attested.bundle,
            result=attested.result,
        )
        self._keep(self._records, request_id, record)

    def _receipt_record(
        self, request_id: str, attested: _Attested, exchange: Exchange
    ) -> ReceiptRecord:
        if exchange.claims is None or exchange.receipt is None:
            raise UsageError("Only a confirmed exchange has a receipt.")
        context, keys = attested.context, exchange.outgoing.keys
        return make_record(
            request_id,
            self.address,
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


def _digests(log: MeasuredLog) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for model in log.models.models:
        found[model.name] = model.file_sha256
        found |= {f"{model.name}/{name}": digest for name, digest in model.adapters}
    return found


def _check_digests(cards: tuple[ModelCard, ...], models: dict[str, bytes]) -> None:
    """Raises ``EvidenceRejected`` for a card of a model that the evidence does not name."""
    for card in cards:
        measured = models.get(card.name)
        if measured is None or measured.hex() != card.sha256:
            raise EvidenceRejected(
                "card_mismatch",
                "cards",
                expected=f"model '{card.name}' as the evidence names it",
                actual=card.sha256 or "no digest",
            )
