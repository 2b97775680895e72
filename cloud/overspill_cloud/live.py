"""All answers of a node by stream id: for repeated starts, resumptions, cancels and the drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from overspill.sealing.schedule import check_cancel_mac, check_resume_mac
from overspill_cloud.answer import LiveAnswer
from overspill_cloud.streams import Stop, StreamLimits

_FIRST_READ_S = 1.0
"""A new answer has a reader at once, or his connection is lost already."""
_LAST_READ_S = 5.0
"""When a drain ends, readers get so long for what they have not taken yet."""


class LiveAnswers:
    """Answers under way, and those that ended within ``ring_s``. ``settle`` is called once for
    each, when its engine has let go."""

    def __init__(self, limits: StreamLimits, settle: Callable[[LiveAnswer], None]) -> None:
        self._limits = limits
        self._settle = settle
        self._beginning: dict[bytes, asyncio.Task[LiveAnswer]] = {}
        self._answers: dict[bytes, LiveAnswer] = {}
        self._busy: set[LiveAnswer] = set()
        self._timers: dict[LiveAnswer, asyncio.TimerHandle] = {}
        self._kept: dict[LiveAnswer, int] = {}
        self._kept_bytes = 0
        self._is_over = False
        """Whoever begins from now on goes on elsewhere."""
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._busy)

    async def known(self, stream: bytes) -> LiveAnswer | None:
        """The answer under this name; where its admission is under way, once that is over."""
        beginning = self._beginning.get(stream)
        if beginning is not None:
            await asyncio.wait([beginning])
        return self._answers.get(stream)

    async def begin(self, stream: bytes, admit: Coroutine[Any, Any, LiveAnswer]) -> LiveAnswer:
        """Admit a stream, to the end: a reader who leaves meanwhile can come back to it."""
        task = asyncio.create_task(admit)
        self._beginning[stream] = task
        self._idle.clear()
        task.add_done_callback(lambda done: self._begun(stream, done))
        return await asyncio.shield(task)

    def _begun(self, stream: bytes, task: asyncio.Task[LiveAnswer]) -> None:
        self._beginning.pop(stream, None)
        if task.cancelled() or task.exception() is not None:
            self._rest()
            return
        answer = task.result()
        self._answers[stream] = answer
        self._busy.add(answer)
        if answer.run.ended:
            self.settled(answer)
        elif self._is_over:
            answer.run.stop(Stop.DRAINED)
        else:
            self._expect_reader(answer, max(_FIRST_READ_S, self._limits.detach_grace_s))

    def find(self, stream: bytes, mac: bytes, next_frame: int) -> LiveAnswer | None:
        """The answer, for who began it; None for an unknown stream.

        Raises ``StreamCorrupt`` for a MAC that is not his.
        """
        answer = self._answers.get(stream)
        if answer is not None:
            check_resume_mac(answer.asked.stream.keys, stream, next_frame, mac)
        return answer

    async def cancel(self, stream: bytes, mac: bytes) -> None:
        """Stop a stream for who began it. An unknown stream is already what was asked for.

        Raises ``StreamCorrupt`` for a MAC that is not its client's.
        """
        answer = await self.known(stream)
        if answer is not None:
            check_cancel_mac(answer.asked.stream.keys, stream, mac)
            answer.run.stop(Stop.CANCELLED)
            if answer.run.ended and not answer.is_read:
                self._forget(answer)

    def left(self, answer: LiveAnswer) -> None:
        """The reader is gone: the run goes on for the grace, and no longer."""
        if answer.run.ended:
            self._free(answer)
        else:
            self._expect_reader(answer, self._limits.detach_grace_s)

    def settled(self, answer: LiveAnswer) -> None:
        """The engine let go: settle, and keep what was sent for a while."""
        if answer.is_forgotten:  # by a drain that did not wait for its engine
            self._settle(answer)
            return
        if answer.asked.stream.id not in self._answers:
            return  # it ended before it was begun: comes again from there
        self._settle(answer)
        self._keep(answer)
        if not answer.is_read:
            self._free(answer)

    async def drain(self, timeout_s: float) -> bool:
        """Wait until all ended, those too whose admission is under way; after ``timeout_s`` tell
        the rest to go on elsewhere. Whether there was such a rest."""
        if await self._ended(timeout_s):
            return False
        self._is_over = True
        for answer in tuple(self._busy):
            answer.run.stop(Stop.DRAINED)
        if not await self._ended(_LAST_READ_S):
            for answer in tuple(self._busy):
                self._forget(answer)
        return True

    async def _ended(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    # What is kept, and for how long -----------------------------------------------------------

    def _expect_reader(self, answer: LiveAnswer, within_s: float) -> None:
        def detach() -> None:
            if not answer.is_read:
                answer.run.stop(Stop.DETACHED)

        self._time(answer, within_s, detach)

    def _keep(self, answer: LiveAnswer) -> None:
        size = answer.kept_bytes
        self._kept[answer] = size
        self._kept_bytes += size
        self._time(answer, self._limits.ring_s, lambda: self._forget(answer))
        while self._kept_bytes > self._limits.max_kept_bytes:
            self._forget(next(iter(self._kept)))

    def _free(self, answer: LiveAnswer) -> None:
        self._busy.discard(answer)
        self._rest()
        if answer.run.ending is Stop.CANCELLED:
            self._forget(answer)  # who asked for that does not come back

    def _forget(self, answer: LiveAnswer) -> None:
        self._answers.pop(answer.asked.stream.id, None)
        self._kept_bytes -= self._kept.pop(answer, 0)
        timer = self._timers.pop(answer, None)
        if timer is not None:
            timer.cancel()
        answer.forget()
        self._busy.discard(answer)
        self._rest()

    def _rest(self) -> None:
        if not self._busy and not self._beginning:
            self._idle.set()

    def _time(self, answer: LiveAnswer, delay_s: float, then: Callable[[], None]) -> None:
        timer = self._timers.pop(answer, None)
        if timer is not None:
            timer.cancel()
        self._timers[answer] = asyncio.get_running_loop().call_later(delay_s, then)
