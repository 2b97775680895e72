"""A request's deadlines, kept at each wait: a timeout around a whole generator would strike
whoever reads it while it rests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from overspill.errors import DeadlineExceeded
from overspill.types.chat import Request

_T = TypeVar("_T")


class Deadlines:
    """Both count from now. ``has_begun`` is for whoever sees the first token."""

    def __init__(self, request: Request) -> None:
        self.has_begun = False
        self._request = request
        self._from_s = asyncio.get_running_loop().time()

    async def keep(self, work: Awaitable[_T]) -> _T:
        """Wait for ``work``. Raises ``DeadlineExceeded`` when its time is up first."""
        limit_s = self._limit_s()
        try:
            async with asyncio.timeout_at(None if limit_s is None else self._from_s + limit_s):
                return await work
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"The answer was not there within {limit_s:g} s.", mend="Allow more time."
            ) from error

    def _limit_s(self) -> float | None:
        whole, first = self._request.deadline_s, self._request.first_token_s
        limits = [whole] if self.has_begun else [whole, first]
        return min((limit for limit in limits if limit is not None), default=None)
