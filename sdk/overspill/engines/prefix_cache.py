"""Prefix reuse: what is computed of a prompt already, by longest common prefix.

Three places hold computed tokens: the slots of running sequences, free slots whose last sequence
left its cache there, and copies in host memory. Free slots are evictable and never keep anybody
from being admitted; an evicted one is copied to host memory first where the runtime can do that.
Nothing is shared but under one :data:`PrefixKey`: the same app, scope and adapter.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from overspill.engines.backend import SavedState
from overspill.errors import EngineError

if TYPE_CHECKING:
    from overspill.engines.backend import Backend

PrefixKey: TypeAlias = "tuple[str, str, str | None]"
"""App, scope within it, adapter; the model and its template are the scheduler's own."""

MIN_WORTH_COPYING = 32
"""Tokens below which a copy isn't worth its trouble; a slot is reused for any."""
MIN_WORTH_WAITING = 128
"""Tokens that somebody else is about to compute, from which on it is worth waiting for him."""


class Sharing(Protocol):
    """What is to be known about a running sequence."""

    slot: int

    @property
    def prefix_key(self) -> PrefixKey | None:
        """With whom it shares; None with nobody."""

    @property
    def prompt(self) -> list[int]:
        """Its prompt's tokens."""

    @property
    def computed(self) -> int:
        """How many tokens, prompt first, its slot holds."""

    @property
    def ended(self) -> bool:
        """Whether its slot is no longer its own."""


SharingT = TypeVar("SharingT", bound=Sharing)


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Tokens that are computed somewhere; two are the same only if they are one."""

    key: PrefixKey
    tokens: tuple[int, ...]


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with; by halving, so that comparing is done in C."""
    low, high = 0, min(len(one), len(other))
    one, other = tuple(one[:high]), tuple(other[:high])
    if one == other:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


class HostStore:
    """States of evicted sequences, least recently used out first, at most ``max_bytes``."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._states: OrderedDict[Prefix, SavedState] = OrderedDict()
        self.used_bytes = 0

    def __len__(self) -> int:
        return len(self._states)

    @property
    def prefixes(self) -> Iterable[Prefix]:
        """All that is kept, least recently used first."""
        return self._states.keys()

    def covers(self, prefix: Prefix) -> bool:
        """Whether all these tokens are in a state already."""
        tokens = prefix.tokens
        return any(
            held.key == prefix.key and held.tokens[: len(tokens)] == tokens for held in self._states
        )

    def put(self, prefix: Prefix, state: SavedState) -> None:
        """Keep a state, instead of those that it goes on from; too large ones are dropped."""
        if state.size_bytes > self._max_bytes:
            return
        for held in list(self._states):
            if held.key == prefix.key and prefix.tokens[: len(held.tokens)] == held.tokens:
                self.drop(held)
        self._states[prefix] = state
        self.used_bytes += state.size_bytes
        while self.used_bytes > self._max_bytes:
            self.drop(next(iter(self._states)))

    def best(self, key: PrefixKey, prompt: Sequence[int]) -> tuple[Prefix | None, int]:
        """The state that shares most with a prompt, and how many tokens it shares."""
        best: tuple[Prefix | None, int] = (None, 0)
        for held in self._states:
            if held.key == key and (shared := common_prefix(held.tokens, prompt)) > best[1]:
                best = held, shared
        return best

    def take(self, prefix: Prefix) -> SavedState:
        """A state, now the last to be dropped."""
        self._states.move_to_end(prefix)
        return self._states[prefix]

    def drop(self, prefix: Prefix) -> None:
        """Forget a state."""
        self.used_bytes -= self._states.pop(prefix).size_bytes


class PrefixCache:
    """Finds slots for newcomers and fills them with what is there already.

    Lives on the scheduler's thread, but for ``known``. What fails in the backend costs the reuse
    and nothing else: the slot is emptied and the prompt computed.
    """

    def __init__(self, backend: Backend, *, max_bytes: int) -> None:
        self._backend = backend
        self._cuts = backend.abilities.cuts
        self._stashes = backend.abilities.saves_state and max_bytes > 0
        # Free slots with something in them, least recently left first.
        self._resident: OrderedDict[int, Prefix] = OrderedDict()
        self._store = HostStore(max_bytes)
        # What other threads may look at: replaced, never changed.
        self._snapshot: tuple[Prefix, ...] = ()

    @property
    def host_bytes(self) -> int:
        """Host memory that states take."""
        return self._store.used_bytes

    def known(self, key: PrefixKey | None, prompt: Sequence[int]) -> int:
        """How many tokens of a prompt a free slot or the host holds. *Any thread.*"""
        held = (prefix.tokens for prefix in self._snapshot if prefix.key == key)
        return max((common_prefix(tokens, prompt) for tokens in held), default=0)

    def place(
        self, newcomer: Sharing, free: Sequence[int], running: Iterable[Sharing]
    ) -> tuple[int, int]:
        """A free slot for a newcomer, the first if it can be, and how many tokens of its prompt
        are in it.

        At least one token is left to compute: its logits choose the first of the answer.
        """
        key, prompt = newcomer.prefix_key, newcomer.prompt[:-1]
        found = None
        if key is not None and self._cuts:
            try:
                found = self._reuse(key, prompt, free, running)
            except EngineError:
                found = None
        if found is None:
            found = self._emptied(free), 0
        self._note_held()
        return found

    def keep(self, slot: int, key: PrefixKey | None, tokens: Sequence[int]) -> None:
        """Take over the slot of a sequence that left; without a key its cache is dropped."""
        if key is None or not tokens or not self._cuts:
            self._backend.forget(slot, 0)
        else:
            self._resident[slot] = Prefix(key, tuple(tokens))
            self._note_held()

    def catch_up(self, follower: Sharing, leader: Sharing, tokens: int) -> bool:
        """Copy what a running leader has computed; False where the runtime failed to."""
        try:
            self._copy(leader.slot, follower.slot, tokens)
        except EngineError:
            return False
        return True

    def inherit(self, follower: Sharing, running: Iterable[Sharing]) -> int:
        """Fill the slot of one whose leader left before it had all; returns what it holds now.

        The leader's tokens are in its slot still, or with who took that, or on the host.
        """
        key, prompt = follower.prefix_key, follower.prompt[:-1]
        if key is None:
            return follower.computed
        slot, resident = self._best_resident(key, prompt)
        lender, beside = _best_running(key, prompt, running)
        saved, stored = self._store.best(key, prompt)
        if lender is not None and beside > resident:
            slot, resident = lender.slot, beside
        if max(resident, stored) < follower.computed + MIN_WORTH_COPYING:
            return follower.computed
        try:
            if slot is not None and resident >= stored:
                self._copy(slot, follower.slot, resident)
            elif saved is not None:
                self._load(saved, stored, follower.slot)
        except EngineError:
            return 0
        return max(resident, stored)

    def shrink(self, most_tokens: int) -> None:
        """Evict free slots until no more than so many tokens stay in them."""
        held = sum(len(resident.tokens) for resident in self._resident.values())
        while held > most_tokens:
            slot = next(iter(self._resident))
            held -= len(self._resident[slot].tokens)
            self._evict(slot)

    def _note_held(self) -> None:
        self._snapshot = (*self._resident.values(), *self._store.prefixes)

    def _reuse(
        self, key: PrefixKey, prompt: list[int], free: Sequence[int], running: Iterable[Sharing]
    ) -> tuple[int, int] | None:
        slot, resident = self._best_resident(key, prompt)
        leader, beside = _best_running(key, prompt, running)
        saved, stored = self._store.best(key, prompt)
        least = max(resident, MIN_WORTH_COPYING - 1)
        if leader is not None and beside > least and beside >= stored:
            target = self._emptied(free)
            self._copy(leader.slot, target, beside)
            return target, beside
        if saved is not None and stored > least:
            return self._load(saved, stored, self._emptied(free)), stored
        return None if slot is None else (self._extend(slot, resident, free), resident)

    def _extend(self, slot: int, tokens: int, free: Sequence[int]) -> int:
        """Go on in a free slot; what others may want of it is copied away before it is cut."""
        held = self._resident[slot]
        lost = len(held.tokens) - tokens
        if lost >= MIN_WORTH_COPYING and tokens >= MIN_WORTH_COPYING and not self._stash(slot):
            others = [other for other in free if other != slot]
            if others:
                target = self._emptied(others)
                self._copy(slot, target, tokens)
                return target
        del self._resident[slot]
        self._cut(slot, tokens)
        return slot

    def _copy(self, source: int, target: int, tokens: int) -> None:
        try:
            self._backend.copy_prefix(source, target, tokens)
        except EngineError:
            self._backend.forget(target, 0)
            raise

    def _load(self, saved: Prefix, tokens: int, target: int) -> int:
        try:
            self._backend.load_state(target, self._store.take(saved))
        except EngineError:
            self._store.drop(saved)
            self._backend.forget(target, 0)
            raise
        self._cut(target, tokens)
        return target

    def _cut(self, slot: int, tokens: int) -> None:
        try:
            self._backend.forget(slot, tokens)
        except EngineError:
            self._backend.forget(slot, 0)
            raise

    def _best_resident(self, key: PrefixKey, prompt: list[int]) -> tuple[int | None, int]:
        best: tuple[int | None, int] = (None, 0)
        for slot, held in self._resident.items():
            if held.key == key and (shared := common_prefix(held.tokens, prompt)) > best[1]:
                best = slot, shared
        return best

    def _emptied(self, free: Sequence[int]) -> int:
        """A slot with nothing in it: the first of them, as long as that loses nothing; else an
        empty one, or the one that was left first."""
        if free[0] in self._resident and self._stashes:
            self._evict(free[0])
        slot = next((s for s in free if s not in self._resident), None)
        if slot is None:
            slot = next(s for s in self._resident if s in free)
            self._evict(slot)
        return slot

    def _evict(self, slot: int) -> None:
        self._stash(slot)
        del self._resident[slot]
        self._backend.forget(slot, 0)

    def _stash(self, slot: int) -> bool:
        """Copy a free slot to host memory; False where that is not to be had."""
        if not self._stashes:
            return False
        held = self._resident[slot]
        if len(held.tokens) >= MIN_WORTH_COPYING and not self._store.covers(held):
            try:
                self._store.put(held, self._backend.save_state(slot))
            except EngineError:
                return False
        return True


def find_leader(newcomer: SharingT, running: Iterable[SharingT]) -> tuple[SharingT | None, int]:
    """Who is about to compute a prefix of the newcomer's prompt, and how many tokens of it.

    Only where that saves at least :data:`MIN_WORTH_WAITING` tokens.
    """
    key, prompt = newcomer.prefix_key, newcomer.prompt
    best: tuple[SharingT | None, int] = (None, newcomer.computed + MIN_WORTH_WAITING - 1)
    for other in running if key is not None else ():
        if other is not newcomer and other.prefix_key == key:
            shared = common_prefix(other.prompt, prompt[:-1])
            if shared > max(best[1], other.computed):
                best = other, shared
    return best


def _best_running(
    key: PrefixKey, prompt: list[int], running: Iterable[Sharing]
) -> tuple[Sharing | None, int]:
    best: tuple[Sharing | None, int] = (None, 0)
    for other in running:
        if other.prefix_key == key and other.slot >= 0:
            shared = common_prefix(other.prompt, prompt)
            # Who has much left of it to compute is followed, and copied once.
            if best[1] < shared < other.computed + MIN_WORTH_WAITING:
                best = other, min(shared, other.computed)
    return best
