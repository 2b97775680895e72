"""A request's deadlines, held whatever its answer waits for: a queue, a model that loads, a cloud.

Engines hold them between steps and refuse early what would be too late. This ends also what stands
still, a step that never ends for instance.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from overspill.errors import DeadlineExceeded
from overspill.types.chat import Request
from overspill.types.reply import ReplyChunk


async def in_time(
    request: Request, pieces: AsyncGenerator[ReplyChunk]
) -> AsyncGenerator[ReplyChunk]:
    """The same pieces. Raises ``DeadlineExceeded``, with the text so far, and cancels the work."""
    started = asyncio.get_running_loop().time()
    said: list[str] = []
    async with aclosing(pieces):
        while True:
            limit_s = _limit_s(request, begun=bool(said))
            ends = asyncio.timeout_at(None if limit_s is None else started + limit_s)
            try:
                async with ends:
                    piece = await anext(pieces, None)
            except TimeoutError:
                if not ends.expired():
                    raise
                raise DeadlineExceeded(
                    f"The answer took longer than {limit_s:g} s.",
                    mend="Allow more time, or ask for fewer tokens.",
                    partial="".join(said),
                ) from None
            if piece is None:
                return
            said.append(piece.text)
            yield piece


def _limit_s(request: Request, *, begun: bool) -> float | None:
    """Seconds from the start until the next piece has to be here."""
    limits = (request.deadline_s, None if begun else request.first_token_s)
    return min((limit for limit in limits if limit is not None), default=None)
