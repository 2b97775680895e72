"""One node behind a cloud: its road, its verified evidence, and how well it did lately."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio

from overspill.errors import BusyError, EvidenceRejected, ReceiptInvalid
from overspill.exchange import parsed
from overspill.log_watch import verify_remembering
from overspill.sealing.receipt import check_cards
from overspill.state.log_state import LogStateStore
from overspill.transport.base import Transport
from overspill.transport.guard import Guard
from overspill.trust.freshness import NONCE_BYTES
from overspill.trust.measured import MeasuredLog
from overspill.trust.policy import TrustPolicy
from overspill.trust.verifier import Context, verify
from overspill.types.card import ModelCard
from overspill.types.evidence import AttestationResult, EvidenceBundle
from overspill.wire import plaintext

CHALLENGE_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Attested:
    """Verified evidence, and the models (and ``MODEL/ADAPTER``) that it names, by SHA-256."""

    result: AttestationResult
    bundle: EvidenceBundle
    models: dict[str, bytes]
    context: Context


class Replica:
    """A node. ``refresh_before_s``: evidence is fetched anew a little before it runs out."""

    def __init__(
        self,
        transport: Transport,
        policy: TrustPolicy,
        guard: Guard,
        *,
        clock: Callable[[], float],
        log_state: LogStateStore | None,
        refresh_before_s: int,
    ) -> None:
        self.transport = transport
        self.guard = guard
        self.streams = 0
        """Answers that come from there now."""
        self.cards: tuple[bytes, tuple[ModelCard, ...]] | None = None
        """The configuration under which they were signed, and the cards that were verified."""
        self._policy = policy
        self._clock = clock
        self._log_state = log_state
        self._refresh_before_s = refresh_before_s
        self._attesting = anyio.Lock()
        self._attested: Attested | None = None

    @property
    def address(self) -> str:
        """Where the node is."""
        return self.transport.address

    async def verified(self) -> Attested:
        """The verified evidence, from memory while it holds.

        Raises ``EvidenceRejected``, or ``TransportError`` when the node cannot be reached.
        """
        if (known := self._in_force()) is not None:
            return known  # without the lock: that takes a turn of the event loop, for each request
        async with self._attesting:
            known = self._in_force()
            if known is None:
                self._attested = known = await self._fetch_and_verify(int(self._clock()))
            return known

    def _in_force(self) -> Attested | None:
        known = self._attested
        if known is None:
            return None
        is_over = known.result.accepted_until <= int(self._clock()) + self._margin_s(known)
        return None if is_over else known

    def forget(self, attested: Attested) -> None:
        """What the node shows next is verified like a stranger's."""
        if self._attested is attested:
            self._attested = None

    async def fetch_cards(self) -> tuple[ModelCard, ...]:
        """The node's model cards: signed by the attested receipt key, and true to its evidence.

        Raises as :meth:`verified`, and ``ReceiptInvalid`` for a signature that is not the node's.
        """
        attested = await self.verified()
        if self.cards is not None and self.cards[0] == attested.result.nkc_sha256:
            return self.cards[1]
        try:
            return await self._fetch_cards(attested)
        except ReceiptInvalid:
            # Signed under a configuration that the node renewed since? Then what it shows now is
            # verified like a stranger's, and a second failure is final.
            self.forget(attested)
        return await self._fetch_cards(await self.verified())

    async def _fetch_cards(self, attested: Attested) -> tuple[ModelCard, ...]:
        result = attested.result
        data, signature = await self.transport.get_cards()
        check_cards(data, signature, result.receipt_public_key, result.nkc_sha256)
        cards = parsed(plaintext.cards_from_bytes, data)
        _check_digests(cards, attested.models)
        self.cards = (result.nkc_sha256, cards)
        return cards

    def _margin_s(self, known: Attested) -> int:
        # A little early, but evidence that is short-lived by policy still counts while it holds.
        lifetime = known.result.accepted_until - known.result.not_before
        return min(self._refresh_before_s, lifetime // 10)

    async def _challenged(self, nonce: bytes) -> EvidenceBundle:
        """Fresh evidence. A node makes so many a second: in a rush this one waits for its turn."""
        until_s = time.monotonic() + CHALLENGE_WAIT_S
        while True:
            try:
                return await self.transport.challenge(nonce)
            except BusyError as error:
                # Not all at one moment again: between half of it and one and a half.
                pause_s = (error.retry_after_s or 1.0) * (0.5 + nonce[0] / 255)
                if time.monotonic() + pause_s > until_s:
                    raise
            await anyio.sleep(pause_s)

    async def _fetch_and_verify(self, now_unix: int) -> Attested:
        nonce = os.urandom(NONCE_BYTES) if self._policy.freshness == "nonce" else None
        if nonce is None:  # (1)
            bundle = await self.transport.get_bundle()
        else:
            bundle = await self._challenged(nonce)
        context = Context(
            now_unix=now_unix,
            address=self.transport.address,
            is_local=self.transport.is_local,
            nonce=nonce,
        )
        if self._log_state is None:  # (2)
            result = verify(bundle, context, self._policy)
        else:
            result = verify_remembering(bundle, context, self._policy, self._log_state)
        return Attested(result, bundle, _digests(MeasuredLog.decode(bundle.measured_log)), context)


def by_rendezvous(replicas: Sequence[Replica], sticky: bytes) -> list[Replica]:
    """The replicas in the order in which ``sticky`` prefers them (highest random weight): the
    same value goes to the same replica, and when one is gone only its own sessions move."""

    def weight(replica: Replica) -> bytes:
        return hashlib.sha256(sticky + replica.address.encode()).digest()

    return sorted(replicas, key=weight)


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
