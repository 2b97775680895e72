"""A node's keys and the evidence that binds them: made at start, renewed, never stored.

The HPKE key lives in memory for at most a day; a restarted node can open nothing old. The node
key configuration and its evidence are renewed every 30 minutes over the same key, or over a new
one when the key's day is nearly over. Old configurations overlap as long as clients accept them.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from overspill.errors import BusyError, InvalidRequest, OverspillError
from overspill.sealing.hpke import AEAD_CHACHA20_POLY1305, KDF_HKDF_SHA256, NodeKeyPair
from overspill.sealing.receipt import ReceiptKey
from overspill.trust.nkc import NO_DIGEST, NodeKeyConfig
from overspill.trust.nvidia import claims_digest
from overspill.types.evidence import Evidence, EvidenceBundle
from overspill.wire import convert
from overspill_cloud import events
from overspill_cloud.attester.base import Attester
from overspill_cloud.attester.nvidia import NvidiaGpu
from overspill_cloud.measure import NodeMeasurements
from overspill_cloud.models import ServedModel
from overspill_cloud.release import UNRELEASED, ReleaseFile

KEY_LIFETIME_S: Final = 24 * 3600
RENEW_S: Final = 1800
CHECK_S: Final = 30.0
"""By the wall clock in small steps: a machine that slept must not serve stale evidence."""
CLIENT_ACCEPTS_S: Final = 3600
_SHARE: Final = 0.25
"""Of its time an attester may be quoting for clients."""
_WEIGHT: Final = 0.2
"""Of the newest quote in what quotes take: a node that stood still once is not slow for long."""
BACKDATE_S: Final = 60
"""A client whose clock is a little behind must not find the evidence from its future."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One node key configuration with its keys, its evidence and its signed cards."""

    pair: NodeKeyPair
    receipt_key: ReceiptKey
    key_made_unix: int
    nkc_sha256: bytes
    not_before: int
    not_after: int
    bundle: EvidenceBundle
    cards: tuple[bytes, bytes]


class ChallengeBudget:
    """A token bucket over all clients: a quote costs the node more than it costs who asks.

    It fills as quickly as quotes can be made in a quarter of the time: by a TPM some a second, by
    keys in memory as many as come when all clients of a lost node move at once. ``clock`` gives
    Unix seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        per_s: float = 5.0,
        most_per_s: float = 50.0,
        burst: int = 20,
    ) -> None:
        self._clock = clock
        self._least_per_s = self._per_s = per_s
        self._most_per_s = most_per_s
        self._quote_s: float | None = None
        self._burst = float(burst)
        self._left = float(burst)
        self._at = clock()

    def take(self) -> None:
        """Raise ``BusyError`` when challenges come too fast."""
        now = self._clock()
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            raise BusyError(
                "Too many challenges.",
                mend="Try again later.",
                retry_after_s=1.0,
                reason="CHALLENGES",
            )
        self._left -= 1

    def quoted(self, seconds: float) -> None:
        """One more quote was made, in so long."""
        before = seconds if self._quote_s is None else self._quote_s
        self._quote_s = before + (seconds - before) * _WEIGHT
        rate = _SHARE / max(self._quote_s, 1e-6)
        self._per_s = min(max(rate, self._least_per_s), self._most_per_s)


class KeyRing:
    """The current epoch and those that clients may still use. ``clock`` gives Unix seconds."""

    def __init__(
        self,
        attester: Attester,
        measured: NodeMeasurements,
        models: Sequence[ServedModel],
        clock: Callable[[], float],
        log: events.EventLog,
        release: ReleaseFile | None = None,
        gpu: NvidiaGpu | None = None,
    ) -> None:
        self._attester = attester
        self._gpu = gpu
        self._release = release
        self._measured = measured
        self._models = models
        self._clock = clock
        self._log = log
        self._attesting = threading.Lock()
        self._boot_id = os.urandom(16)
        self._challenges = ChallengeBudget(clock)
        self._epochs: dict[bytes, Epoch] = {}
        self._current = self._make(NodeKeyPair.generate(), ReceiptKey.generate(), int(clock()))
        self._epochs[self._current.nkc_sha256] = self._current

    def current(self) -> Epoch:
        """What new clients get."""
        return self._current

    @property
    def release_name(self) -> str:
        """The release's version, or ``unreleased``."""
        return "unreleased" if self._release is None else self._release.version

    def lookup(self, nkc_sha256: bytes) -> Epoch | None:
        """The epoch of a configuration that clients may still seal to; None otherwise."""
        epoch = self._epochs.get(nkc_sha256)
        return epoch if epoch is not None and self._usable(epoch) else None

    async def challenge(self, nonce: bytes) -> EvidenceBundle:
        """The current configuration with evidence over a client's nonce (32 bytes, not zero)."""
        if len(nonce) != 32 or nonce == bytes(32):
            raise InvalidRequest("A challenge is 32 random bytes.", param="nonce")
        self._challenges.take()
        bundle = self._current.bundle
        evidence = await asyncio.to_thread(self._evidence, bundle.node_key_config, nonce)
        # A GPU's own nonce is of the keys: its evidence stays what the configuration names.
        return replace(bundle, evidence=(evidence, *bundle.evidence[1:]))

    async def renew_forever(self) -> None:
        """Renew every 30 minutes by the clock, until cancelled.

        A renewal that fails is logged and tried again: clients go on refusing stale evidence.
        """
        while True:
            await asyncio.sleep(CHECK_S)
            if self.is_due():
                await self._try_to_renew()

    def is_due(self) -> bool:
        """Whether the current configuration has to be renewed: it is old, or, where the clock was
        set back, from the future, and no client accepts it."""
        age_s = self._clock() - self._current.not_before
        return age_s < 0 or age_s >= BACKDATE_S + RENEW_S

    async def _try_to_renew(self) -> None:
        try:
            await self.renew()
        except OverspillError as error:
            self._log.write(events.RequestRefused(error.code, "renewal"))
        except Exception as error:
            self._log.write(events.InternalError(type(error).__name__, "renewal"))

    async def renew(self) -> None:
        """A new configuration; a new key too, when the old one's day is nearly over.

        Raises ``ModelInvalid`` when a model file is no longer the measured one: nothing is
        attested that is not so.
        """
        for model in self._models:
            await model.check_unchanged()
        old, now = self._current, int(self._clock())
        # A configuration over this key must outlive the time for which clients accept it.
        ends = old.key_made_unix + KEY_LIFETIME_S
        fresh = ends < now + CLIENT_ACCEPTS_S + RENEW_S or old.key_made_unix > now
        pair = NodeKeyPair.generate() if fresh else old.pair
        receipt_key = ReceiptKey.generate() if fresh else old.receipt_key
        made = now if fresh else old.key_made_unix
        self._current = await asyncio.to_thread(self._make, pair, receipt_key, made)
        self._epochs[self._current.nkc_sha256] = self._current
        self._epochs = {k: e for k, e in self._epochs.items() if self._usable(e)}
        nkc = self._current.nkc_sha256.hex()
        self._log.write(events.EvidenceRenewed(nkc_sha256=nkc, new_key=fresh))

    def _usable(self, epoch: Epoch) -> bool:
        # A margin over what clients accept: their clocks may be behind.
        until = min(epoch.not_after, epoch.not_before + CLIENT_ACCEPTS_S + 2 * BACKDATE_S)
        from_future = epoch.not_before > self._clock() + 2 * BACKDATE_S
        return epoch is self._current or (self._clock() < until and not from_future)

    def _make(self, pair: NodeKeyPair, receipt_key: ReceiptKey, made_unix: int) -> Epoch:
        not_before = int(self._clock()) - BACKDATE_S
        # Read again each time: its proof is renewed beside the node, with a newer cosignature.
        release = UNRELEASED if self._release is None else self._release.read()
        gpu = self._gpu_evidence(pair)
        gpu_digest = claims_digest(gpu[0]) if gpu else NO_DIGEST
        config = NodeKeyConfig(
            mode=self._attester.mode,
            kem_id=pair.kem_id,
            kdf_id=KDF_HKDF_SHA256,
            aead_id=AEAD_CHACHA20_POLY1305,
            hpke_public_key=pair.public_bytes,
            receipt_public_key=receipt_key.public_bytes,
            not_before=not_before,
            not_after=made_unix - BACKDATE_S + KEY_LIFETIME_S,
            models_digest=self._measured.models_digest,
            config_digest=self._measured.config_digest,
            boot_id=self._boot_id,
            release_id=release.release_id,
            gpu_claims_digest=gpu_digest,
            freshness_anchor_sha256=release.anchor_sha256,
        )
        nkc = config.encode()
        digest = hashlib.sha256(nkc).digest()
        cards = convert.cards_to_bytes(model.card for model in self._models)
        return Epoch(
            pair=pair,
            receipt_key=receipt_key,
            key_made_unix=made_unix,
            nkc_sha256=digest,
            not_before=not_before,
            not_after=config.not_after,
            bundle=EvidenceBundle(
                node_key_config=nkc,
                evidence=(self._evidence(nkc, None), *gpu),
                release=release.envelope,
                release_proof=release.proof,
                measured_log=self._measured.log,
                gpu_claims_digest=gpu_digest if gpu else b"",
                freshness_anchor=release.anchor,
            ),
            cards=(cards, receipt_key.sign_cards(digest, cards)),
        )

    def _evidence(self, nkc: bytes, nonce: bytes | None) -> Evidence:
        # One at a time: challenges come from any thread, and a TPM is one device.
        with self._attesting:
            began = time.perf_counter()
            evidence = self._attester.evidence(nkc, nonce, self._measured.log)
            self._challenges.quoted(time.perf_counter() - began)
        return evidence

    def _gpu_evidence(self, pair: NodeKeyPair) -> tuple[Evidence, ...]:
        if self._gpu is None:
            return ()
        return (self._gpu.evidence(self._boot_id, pair.public_bytes),)
