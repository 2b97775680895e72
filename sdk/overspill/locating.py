"""Which replicas a cloud has: asked of one that proved itself, and gone by for a while.

A list gives no trust. What it names is verified like any node, and a node elsewhere may not send a
device to its own loopback, where plaintext would pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import anyio

from overspill.errors import InvalidRequest, OverspillError, ReceiptInvalid
from overspill.exchange import parsed
from overspill.replica import Replica
from overspill.sealing.receipt import check_replicas
from overspill.transport.base import is_local_address
from overspill.types.replicas import ReplicaList
from overspill.wire import plaintext

MAX_REPLICAS: Final = 256
MAX_VALID_S: Final = 3600
ASK_AGAIN_S: Final = 300.0
"""After a node that stands alone, or could not say."""
LOST_AGAIN_S: Final = 1.0
"""Between two looks before their time, for answers that lost their node."""
LOST_WAIT_S: Final = 0.5
"""So long, at most, does such an answer wait for a list: a frozen node says nothing."""
_SKEW_S: Final = 90


async def locate(replica: Replica, now_unix: int) -> ReplicaList:
    """The signed list of one replica.

    Raises ``EvidenceRejected``, ``ReceiptInvalid`` for a list that is not this node's or is over,
    ``InvalidRequest`` where the node stands alone, ``TransportError`` for the road.
    """
    attested = await replica.verified()
    data, signature = await replica.transport.locate()
    check_replicas(data, signature, attested.result.receipt_public_key, attested.result.nkc_sha256)
    found = parsed(plaintext.replicas_from_bytes, data)
    if len(found.addresses) > MAX_REPLICAS or found.valid_s > MAX_VALID_S:
        raise ReceiptInvalid("The list of replicas is out of bounds.")
    if abs(now_unix - found.issued_unix) > found.valid_s + _SKEW_S:
        raise ReceiptInvalid("The list of replicas is an old one.")
    return found


class Locator:
    """Keeps the replicas of a cloud in step with what the cloud says. ``clock`` gives Unix seconds,
    ``join`` makes a replica of an address."""

    def __init__(
        self,
        seeds: Sequence[Replica],
        join: Callable[[str], Replica],
        clock: Callable[[], float],
    ) -> None:
        self._seeds = tuple(seeds)
        self._join = join
        self._clock = clock
        self._known = {replica.address: replica for replica in seeds}
        self._leaving: frozenset[str] = frozenset()
        """Those that the last list did not name any more."""
        self._ask_at = 0.0
        self._asked = 0.0

    @property
    def all(self) -> tuple[Replica, ...]:
        """Every replica that is open: theirs are the roads to close."""
        return tuple(self._known.values())

    async def refresh(self, current: Sequence[Replica]) -> Sequence[Replica]:
        """The replicas to use from now on; ``current`` where nothing new could be learnt."""
        return current if self._clock() < self._ask_at else await self._ask(current, current)

    async def refresh_without(self, lost: Replica, current: Sequence[Replica]) -> Sequence[Replica]:
        """The same before its time, since an answer lost its node: who replaced it, and others
        meanwhile, is on no list from before. The lost one is asked last: a node that drains tells
        of the others for a while."""
        if self._clock() < self._asked + LOST_AGAIN_S:
            return current
        due, found = self._ask_at, current
        with anyio.move_on_after(LOST_WAIT_S):
            found = await self._ask(sorted(current, key=lambda replica: replica is lost), current)
        if found is current:
            self._ask_at = due  # nothing was learnt by this, so nothing is put off by it
        return found

    async def _ask(
        self, tellers: Sequence[Replica], current: Sequence[Replica]
    ) -> Sequence[Replica]:
        now = self._asked = self._clock()
        self._ask_at = now + ASK_AGAIN_S
        for replica in (*tellers, *self._seeds):
            try:
                found = await locate(replica, int(now))
            except InvalidRequest:
                return current
            except OverspillError:
                continue  # the next one may be better off; requests will say what is wrong
            self._ask_at = now + max(1, found.valid_s)
            joined = self._joined(replica, found)
            if joined:
                await self._let_go(joined)
            return joined or current
        return current

    def _joined(self, teller: Replica, found: ReplicaList) -> tuple[Replica, ...]:
        told = [
            address
            for address in dict.fromkeys(found.addresses)
            if teller.transport.is_local or not is_local_address(address)
        ]
        for address in told:
            if address not in self._known:
                self._known[address] = self._join(address)
        return tuple(self._known[address] for address in told)

    async def _let_go(self, told: Sequence[Replica]) -> None:
        """Close the roads to replicas that two lists in a row did not name: a fleet that is renewed
        often would leave one behind each time. Nothing new begins on them since the first of those
        lists; what still runs there goes on."""
        named = {replica.address for replica in (*told, *self._seeds)}
        absent = frozenset(self._known.keys() - named)
        gone = [address for address in absent & self._leaving if not self._known[address].streams]
        self._leaving = absent - set(gone)
        roads = [self._known.pop(address).transport for address in gone]
        for road in roads:
            await road.aclose()
