"""Who runs next: two lanes, ageing, and KV tokens reserved instead of requests counted."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from overspill.engines.slot_choice import choose_slot
from overspill.types.chat import Lane


class Waiting(Protocol):
    """What the queue needs to know about a request."""

    @property
    def lane(self) -> Lane:
        """``interactive`` goes first, ``batch`` when nothing else waits or it has aged."""

    @property
    def kv_tokens(self) -> int:
        """Prompt and answer together: reserved until the request ends."""

    @property
    def submitted_s(self) -> float:
        """When it was queued, on the scheduler's clock."""


T = TypeVar("T", bound=Waiting)


@dataclass(slots=True)
class KvReservations:
    """KV tokens and sequence slots that running requests hold."""

    kv_tokens: int
    slots: int
    reserved: int = 0
    free_slots: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.free_slots = list(range(self.slots))

    def fits(self, kv_tokens: int) -> bool:
        """Whether a request of that size can start now."""
        return bool(self.free_slots) and self.reserved + kv_tokens <= self.kv_tokens

    def take(self, kv_tokens: int, companions: Collection[int] = ()) -> int:
        """Reserve, and return the sequence slot: beside those of its companions."""
        self.reserved += kv_tokens
        slot = choose_slot(self.free_slots, companions, self.slots)
        self.free_slots.remove(slot)
        return slot

    def exchange(self, slot: int, other: int) -> None:
        """Hold ``other``, which is free, instead of ``slot``."""
        if slot != other:
            self.free_slots.remove(other)
            self.free_slots.append(slot)

    def give_back(self, slot: int, kv_tokens: int) -> None:
        """Free what ``take`` reserved."""
        self.reserved -= kv_tokens
        self.free_slots.append(slot)


def least_prefill_tokens(own: int, others: Iterable[int], chunk: int) -> int:
    """Prompt tokens that are surely computed before a prompt of ``own`` tokens is done.

    Round-robin, each of the others gets as many chunks as this one, or all of its own.
    """
    return own + sum(max(0, min(own, other) - chunk) for other in others)


class AdmissionQueue(Generic[T]):
    """First come, first served within a lane; nobody overtakes the head for being smaller.

    Who cannot start for a reason of his own lets others pass, until he has waited ``ageing_s``.

    The batch lane goes first once its head has waited ``ageing_s`` and nobody overtook by ageing
    for as long: it never starves, and a lane full of aged requests starves nobody either.
    """

    def __init__(self, *, ageing_s: float) -> None:
        self._ageing_s = ageing_s
        self._overtaken_s = -math.inf
        self._lanes: dict[Lane, deque[T]] = {"interactive": deque(), "batch": deque()}

    def __len__(self) -> int:
        return sum(len(lane) for lane in self._lanes.values())

    def push(self, item: T) -> None:
        """Queue behind the others of its lane."""
        self._lanes[item.lane].append(item)

    def remove(self, item: T) -> bool:
        """Take out a request that no longer waits; False when it wasn't queued."""
        try:
            self._lanes[item.lane].remove(item)
        except ValueError:
            return False
        return True

    def head(self, now_s: float, may_start: Callable[[T], bool] = lambda _: True) -> T | None:
        """The next to be admitted, still queued: the head of the lane whose turn it is.

        Where that one may not start, and has not waited for long, it is the next who may.
        """
        lane = self._next_lane(now_s)
        if lane is None:
            return None
        head = self._lanes[lane][0]
        if may_start(head) or now_s - head.submitted_s >= self._ageing_s:
            return head
        return next(filter(may_start, self.items()), head)

    def admit(self, item: T, now_s: float) -> None:
        """Take out the next, who starts now."""
        if item.lane == "batch" and self._lanes["interactive"]:
            self._overtaken_s = now_s
        self._lanes[item.lane].remove(item)

    def items(self) -> list[T]:
        """All that wait, interactive lane first."""
        return [*self._lanes["interactive"], *self._lanes["batch"]]

    def ahead_of(self, lane: Lane) -> list[T]:
        """All that surely go before a newcomer of that lane."""
        return self.items() if lane == "batch" else list(self._lanes[lane])

    def position(self, item: T) -> int | None:
        """How many are ahead of it, ageing left aside; None when it isn't queued."""
        waiting = self.items()
        return waiting.index(item) if item in waiting else None

    def _next_lane(self, now_s: float) -> Lane | None:
        batch, interactive = self._lanes["batch"], self._lanes["interactive"]
        if batch:
            since_s = max(batch[0].submitted_s, self._overtaken_s)
            if not interactive or now_s - since_s >= self._ageing_s:
                return "batch"
        return "interactive" if interactive else None
