"""The asking end of a connection that many answers share, whatever carries it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from overspill import errors
from overspill.transport.handshake import PeerGone
from overspill.types.chat import Chunk
from overspill.wire import convert
from overspill.wire.v1 import chat_pb2, local_pb2


class Answer:
    """The events of one stream that came and were not read yet.

    The connection is read whoever reads an answer, so a slow reader stalls nobody; he gets all
    that gathered meanwhile as one chunk, and what is held grows with his answer alone.
    """

    def __init__(self, number: int, request_id: str) -> None:
        self.number = number
        self.request_id = request_id
        self.begun = False
        self.position: int | None = None
        self._events: list[local_pb2.StreamEvent] = []
        self._failure: errors.OverspillError | None = None
        self._ready = asyncio.Event()

    def put(self, event: local_pb2.StreamEvent) -> None:
        """One more event; a heartbeat only tells the position."""
        if event.event.HasField("heartbeat"):
            self.position = event.event.heartbeat.queue_position
            return
        self.begun, self.position = True, None
        self._events.append(event)
        self._ready.set()

    def fail(self, error: errors.OverspillError) -> None:
        """The connection is gone; what came before is still read first."""
        self._failure = self._failure or error
        self._ready.set()

    async def take(self) -> list[local_pb2.StreamEvent]:
        """All events that came, at least one, of which only the last can be the end; raises what
        broke the connection."""
        while not self._events:
            if self._failure is not None:
                raise self._failure
            self._ready.clear()
            await self._ready.wait()
        events, self._events = self._events, []
        return events


class Answers:
    """What is due on one connection, by number; belongs to the event loop it is made on."""

    def __init__(self) -> None:
        self._due: dict[int, Answer] = {}
        self._numbers = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()

    def __bool__(self) -> bool:
        return bool(self._due)

    def begin(self, request_id: str) -> Answer:
        """One more that is due."""
        if not self._due:
            self._heard_at = self._loop.time()
        answer = Answer(next(self._numbers), request_id)
        self._due[answer.number] = answer
        return answer

    def forget(self, answer: Answer) -> bool:
        """Whether it was still due: then there is work over there to be cancelled."""
        return self._due.pop(answer.number, None) is not None

    def hand_out(self, batch: local_pb2.EventBatch) -> None:
        """What came, even if it is nothing: any message is a sign of life."""
        self._heard_at = self._loop.time()
        for event in batch.events:
            answer = self._due.get(event.stream)
            if answer is not None:
                answer.put(event)
                if is_end(event):
                    del self._due[event.stream]

    def fail(self, error_of: Callable[[bool], errors.OverspillError]) -> None:
        """The connection is gone; ``error_of`` is told whether an answer had begun."""
        for answer in self._due.values():
            answer.fail(error_of(answer.begun))

    def queue_position(self, request_id: str) -> int | None:
        """As last told."""
        answers = (a for a in self._due.values() if a.request_id == request_id)
        return next((answer.position for answer in answers), None)

    async def silence(self, limit_s: float) -> None:
        """Return once something is due and nothing came for ``limit_s``."""
        while not self._due or self._loop.time() - self._heard_at <= limit_s:  # noqa: ASYNC110
            await asyncio.sleep(limit_s / 8)  # an event would cost every message something


def is_end(event: local_pb2.StreamEvent) -> bool:
    """Whether nothing follows on its stream."""
    if event.HasField("event"):
        return event.event.HasField("final") or event.event.HasField("error")
    if event.HasField("embed"):
        return event.embed.HasField("end") or event.embed.HasField("error")
    return event.HasField("counted") or event.HasField("status")


def chunk_of(event: chat_pb2.ChatEvent) -> Chunk:
    """What an event adds to an answer, or its end."""
    if event.HasField("final"):
        return Chunk(finish=convert.final_to_finish(event.final))
    return convert.delta_to_chunk(event.delta)


def broken(address: str, why: str, *, begun: bool) -> errors.TransportError:
    """Nobody answered, or an answer broke off."""
    if begun:
        return errors.StreamBroken(f"The stream from {address} broke ({why}).")
    return PeerGone(f"No answer from {address} ({why}).")
