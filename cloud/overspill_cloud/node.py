"""A node without its wire: what happens to a sealed request, in order.

Errors leave :meth:`Node.chat` in two ways. Before the head is opened there are three, and they
are raised: ``KeyUnknown``, ``InvalidRequest``, ``BusyError``; a servicer makes public codes of
them. After it everything is sealed into the stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import cache

from overspill.errors import (
    BusyError,
    DeviceRejected,
    DoesNotFit,
    EngineError,
    InvalidRequest,
    KeyUnknown,
    ModelError,
    OverspillError,
    StreamCorrupt,
    StreamTruncated,
)
from overspill.sealing.receipt import commitment
from overspill.sealing.schedule import stream_id
from overspill.transport.base import SealedHead
from overspill.types.chat import Request
from overspill.types.evidence import EvidenceBundle
from overspill.types.replicas import ReplicaList
from overspill.wire import convert, plaintext
from overspill_cloud import events
from overspill_cloud.admission import Admission, Database
from overspill_cloud.answer import Asked, Displaced, LiveAnswer
from overspill_cloud.arrivals import Arrivals, Place
from overspill_cloud.enrolment import Enrolment
from overspill_cloud.keys import KeyRing
from overspill_cloud.limits import MOVED_S
from overspill_cloud.live import LiveAnswers
from overspill_cloud.models import ServedModel, pick
from overspill_cloud.pace import Pace
from overspill_cloud.ring import FrameGone
from overspill_cloud.room import Demand, kv_demand
from overspill_cloud.sealed_stream import SealedRequest, SealedStream
from overspill_cloud.store import UsageEntry
from overspill_cloud.streams import StreamLimits

REPLICAS_VALID_S = 30
LEDGER_TIMEOUT_S = 5.0
"""When a node has drained, its ledger gets so long to reach the disk; closing waits once more."""
_TELLABLE = (
    BusyError,
    DeviceRejected,
    DoesNotFit,
    EngineError,
    InvalidRequest,
    ModelError,
    StreamCorrupt,
    StreamTruncated,
)
"""What a client is told as it is. Other errors name what is the node's own: paths, settings."""


@dataclass(frozen=True, slots=True)
class NodeParts:
    """What a node is put together from; only ``app.py`` does it."""

    models: Mapping[str, ServedModel]
    keys: KeyRing
    admission: Admission
    database: Database
    log: events.EventLog
    clock: Callable[[], float]
    limits: StreamLimits = field(default_factory=StreamLimits)
    replicas: Callable[[], tuple[str, ...]] = tuple


class Node:
    """The sealed service over its parts; :mod:`overspill_cloud.server` puts it on a wire."""

    def __init__(self, parts: NodeParts) -> None:
        self._parts = parts
        self._enrolment = Enrolment(parts.database, parts.admission, parts.clock)
        self._arrivals = Arrivals(parts.limits)
        self._live = LiveAnswers(parts.limits, self._settle)
        self._pace = Pace(parts.limits.gather_s)
        self._batch_pace = Pace(parts.limits.batch_gather_s)
        self._draining = False

    @property
    def is_draining(self) -> bool:
        """Whether new streams are refused from now on."""
        return self._draining

    @property
    def active(self) -> int:
        """Answers whose engine works, or whose reader has not taken all yet."""
        return len(self._live)

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """What is served, by name."""
        return self._parts.models

    @property
    def limits(self) -> StreamLimits:
        """Bounds of its streams."""
        return self._parts.limits

    # Trust ------------------------------------------------------------------------------------

    async def get_bundle(self) -> EvidenceBundle:
        """The evidence: the same bytes for everybody."""
        return self._parts.keys.current().bundle

    async def challenge(self, nonce: bytes) -> EvidenceBundle:
        """Fresh evidence over a nonce. Raises ``InvalidRequest`` or, when rate limited,
        ``BusyError``."""
        return await self._parts.keys.challenge(nonce)

    async def get_cards(self) -> tuple[bytes, bytes]:
        """The served models' cards, serialised, and their signature."""
        return self._parts.keys.current().cards

    async def locate(self) -> tuple[bytes, bytes]:
        """Where the replicas of this node's fleet are, serialised, and the list's signature.

        Raises ``InvalidRequest`` where it stands alone.
        """
        addresses = self._parts.replicas()
        if not addresses:
            raise InvalidRequest("This node stands alone.")
        now, epoch = int(self._parts.clock()), self._parts.keys.current()
        data = convert.replicas_to_bytes(ReplicaList(addresses, now, REPLICAS_VALID_S))
        return data, epoch.receipt_key.sign_replicas(epoch.nkc_sha256, data)

    # Sealed -----------------------------------------------------------------------------------

    async def chat(
        self, head: SealedHead, frames: AsyncIterator[bytes]
    ) -> AsyncGenerator[Sequence[bytes]]:
        """Answer one sealed request: the response nonce, alone, then sealed frames, each time those
        that are ready. The same start again is answered by the same frames."""
        known = await self._live.known(stream_id(head.sealed_key))
        if known is not None:
            opening = self._again(known, head, frames)
        else:
            opening = self._anew(head, frames)
        async with aclosing(opening) as parts:
            async for ready in parts:
                yield ready

    async def resume(
        self, stream: bytes, mac: bytes, next_frame: int
    ) -> AsyncGenerator[Sequence[bytes]]:
        """The frames of a running or kept stream from ``next_frame`` on.

        Raises ``InvalidRequest`` when that cannot be had, by whoever asks: why is not told.
        """
        try:
            answer = self._live.find(stream, mac, next_frame)
            if answer is None:
                raise FrameGone("There is no such stream.")
            await self._parts.admission.enrolled(answer.asked.admitted.device.thumbprint)
            answer.ring.read(next_frame)
        except (FrameGone, StreamCorrupt, DeviceRejected) as error:
            self._parts.log.write(events.RequestRefused("resume", type(error).__name__))
            raise InvalidRequest("This stream cannot be resumed.") from None
        self._parts.log.write(events.StreamResumed())
        async with aclosing(answer.frames(next_frame)) as kept:
            async for ready in kept:
                yield ready

    async def enroll(
        self, head: SealedHead, frames: AsyncIterator[bytes]
    ) -> AsyncGenerator[Sequence[bytes]]:
        """Enrol a device: its key signs the enrolment, its code pays for it, or its old key."""
        with self._arrivals.place() as place:
            stream = self._open(head)
            yield (stream.response_nonce,)
            try:
                sealed = await _read(stream, frames, place)
                enrolled = await self._enrolment.enrol(sealed, th=stream.keys.th)
            except Exception as error:
                yield (stream.error(self._refused(error, "enrolment")),)
                return
        self._parts.log.write(events.DeviceEnrolled())
        yield (stream.enrolled(enrolled),)

    async def cancel(self, stream: bytes, mac: bytes) -> None:
        """Stop a stream; whether it existed or the MAC was right is not told."""
        try:
            await self._live.cancel(stream, mac)
        except StreamCorrupt as error:
            self._refused(error, "cancel")

    async def drain(self, timeout_s: float, leaving_s: float = 0.0) -> None:
        """Take no new streams; let those that arrive or run end, and move the rest after
        ``timeout_s``. Those that dawdle on their way are refused sooner: they lose nothing. It
        takes ``leaving_s`` at least: who comes meanwhile is told to go elsewhere. Those who were
        moved find it there for a moment, to ask where that is."""
        self._draining = True
        self._parts.log.write(events.NodeDraining())
        began_s = time.monotonic()
        ends_s = began_s + timeout_s
        grace_s = min(timeout_s, self._parts.limits.arriving_grace_s)
        await self._arrivals.drain(grace_s, _shutting_down())
        has_moved = await self._live.drain(max(0.0, ends_s - time.monotonic()))
        asked_s = time.monotonic() + (MOVED_S if has_moved and leaving_s else 0.0)
        await self._parts.database.written(LEDGER_TIMEOUT_S)
        await asyncio.sleep(max(began_s + leaving_s, asked_s) - time.monotonic())

    # In calling order -------------------------------------------------------------------------

    async def _anew(
        self, head: SealedHead, frames: AsyncIterator[bytes]
    ) -> AsyncGenerator[Sequence[bytes]]:
        self._check_room()
        with self._arrivals.place() as place:
            stream = self._open(head)
            yield (stream.response_nonce,)
            try:
                answer = await self._begun(stream, frames, place)
            except Displaced:
                raise
            except Exception as error:
                yield (stream.error(self._refused(error, "admission")),)
                return
        async with aclosing(answer.frames(0)) as sealed_frames:
            async for ready in sealed_frames:
                yield ready

    async def _begun(
        self, stream: SealedStream, frames: AsyncIterator[bytes], place: Place
    ) -> LiveAnswer:
        """Read and admit: a frame of its own, for what was read is not kept while it is answered.

        Raises ``Displaced``, or why it is refused.
        """
        sealed = await _read(stream, frames, place)
        if await self._live.known(stream.id) is not None:
            raise Displaced("It began over another connection meanwhile.")
        return await self._live.begin(stream.id, self._admit(stream, sealed))

    async def _again(
        self, answer: LiveAnswer, head: SealedHead, frames: AsyncIterator[bytes]
    ) -> AsyncGenerator[Sequence[bytes]]:
        """The same start gets the same answer; one with anything changed is a replay."""
        stream = SealedStream(head, answer.asked.stream.epoch)
        try:
            with self._arrivals.place() as place:
                is_same = answer.is_same_start(await _read(stream, frames, place))
                answer.ring.read(0)
        except (StreamCorrupt, StreamTruncated, InvalidRequest, FrameGone):
            is_same = False
        if not is_same:
            yield (stream.response_nonce,)
            replay = DeviceRejected("This stream was already started.", reason="replay")
            yield (stream.error(self._refused(replay, "admission")),)
            return
        yield (answer.asked.stream.response_nonce,)
        async with aclosing(answer.frames(0)) as kept:
            async for ready in kept:
                yield ready

    def _check_room(self) -> None:
        """Refuse before anything is opened when there is room for nobody: to open a request takes
        longer than all that a refusal needs, and a node that is full gets many."""
        try:
            self._parts.admission.room.check_any()
        except BusyError as error:
            self._refused(error, "admission")
            raise

    def _open(self, head: SealedHead) -> SealedStream:
        if self._draining:
            raise _shutting_down()
        epoch = self._parts.keys.lookup(head.nkc_sha256)
        if epoch is None:
            raise KeyUnknown("The node does not hold this key.", mend="Fetch its evidence again.")
        return SealedStream(head, epoch)

    async def _admit(self, stream: SealedStream, sealed: SealedRequest) -> LiveAnswer:
        signature, th, body = sealed.signature, stream.keys.th, sealed.body
        read = cache(lambda: plaintext.request_from_bytes(body))
        admitted = await self._parts.admission.admit(
            signature,
            th=th,
            body=body,
            demand=lambda: _demand(self._parts.models, read()),
        )
        try:
            request = read()
            model = pick(self._parts.models, request.model)
            await model.check_unchanged()
            promise = commitment(stream.keys.commitment_salt, body)
            asked = Asked(stream, signature, promise, request.attempt, model, admitted)
            # A name of its own for each request: sessions of a node share no prefix cache, no id.
            return LiveAnswer(
                asked,
                replace(request, id=asked.id, app=asked.id, cache_scope=None),
                self._parts.limits,
                pace=self._batch_pace if request.lane == "batch" else self._pace,
                clock=self._parts.clock,
                refused=lambda error: self._refused(error, "answer"),
                left=self._live.left,
                settled=self._live.settled,
            )
        except BaseException:
            admitted.release()
            raise

    def _settle(self, answer: LiveAnswer) -> None:
        asked, usage = answer.asked, answer.usage
        asked.admitted.release(usage.prompt_tokens + usage.completion_tokens)
        self._parts.log.write(
            events.StreamEnded(
                outcome=answer.outcome,
                model=asked.model.name,
                prompt_tokens_le=events.bucket(usage.prompt_tokens),
                completion_tokens_le=events.bucket(usage.completion_tokens),
            )
        )
        entry = UsageEntry(
            request_id=asked.signature.request_id,
            attempt=asked.attempt,
            thumbprint=asked.admitted.device.thumbprint,
            unix_s=int(self._parts.clock()),
            model=asked.model.name,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            outcome=answer.outcome,
            account=asked.admitted.hold.account,
            period_unix=asked.admitted.hold.period_unix,
            lease=asked.admitted.hold.lease,
        )
        self._parts.database.record(entry)

    def _refused(self, error: Exception, where: str) -> OverspillError:
        """Log a refusal by its code alone, and give what may be sealed to the client."""
        if isinstance(error, _TELLABLE):
            reason = error.reason if isinstance(error, DeviceRejected) else ""
            self._parts.log.write(events.RequestRefused(error.code, reason))
            return error
        self._parts.log.write(events.InternalError(type(error).__name__, where))
        return EngineError("The node failed while it worked on this request.", mend="Try again.")


def _shutting_down() -> BusyError:
    return BusyError("The node is shutting down.", mend="Use another one.", reason="DRAINING")


def _demand(models: Mapping[str, ServedModel], request: Request) -> Demand:
    model = pick(models, request.model)
    return Demand(model.name, request.lane, kv_demand(request), model.kv_tokens)


async def _read(stream: SealedStream, frames: AsyncIterator[bytes], place: Place) -> SealedRequest:
    async with place.reading():
        return await stream.read(frames)
