"""Which free slot a newcomer gets: beside those that it is computed with.

llama.cpp computes rows in one pass where their sequences are neighbours in ascending order, and
starts another pass, reading all weights again, at each gap: sixteen sequences in descending order
took three times as long as in ascending. So whoever shares steps - all, or all of one adapter -
is kept together, and those of another adapter begin where there is most room. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def choose_slot(free: Sequence[int], companions: Collection[int], slots: int) -> int:
    """One of the free slots (at least one, of so many from 0 on), next to a companion's if one is.

    A slot between two companions comes first; then the one with most free slots behind it. Far
    from all others where there is no companion, or all of their neighbours are taken.
    """
    beside = [slot for slot in free if slot - 1 in companions or slot + 1 in companions]
    if beside:
        return max(beside, key=lambda slot: (*_room(slot, free, companions), -slot))
    taken = set(range(slots)) - set(free)
    return max(free, key=lambda slot: (min((abs(slot - t) for t in taken), default=0), -slot))


def _room(slot: int, free: Sequence[int], companions: Collection[int]) -> tuple[bool, int]:
    """Whether it joins two companions, and how many free slots lie on from it."""
    if slot - 1 in companions and slot + 1 in companions:
        return True, 0
    step = 1 if slot - 1 in companions else -1
    room = 0
    while slot + room * step in free:
        room += 1
    return False, room
