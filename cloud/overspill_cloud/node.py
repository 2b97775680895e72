"""A node without its wire: what happens to a sealed request, in order.

Errors leave :meth:`Node.chat` in two ways. Before the head is opened there are three, and they
are raised: ``KeyUnknown``, ``InvalidRequest``, ``BusyError``; a servicer makes public codes of
them. After it everything is sealed into the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace

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
from overspill.sealing.receipt import ReceiptClaims, commitment, response_content
from overspill.transport.base import SealedHead
from overspill.types.chat import Chunk, Finish, FinishReason, Request, ToolCall, merge_chunks
from overspill.types.evidence import EvidenceBundle
from overspill.types.usage import Usage
from overspill.wire import plaintext
from overspill_cloud import events
from overspill_cloud.admission import Admission, Admitted, Database
from overspill_cloud.enrolment import Enrolment
from overspill_cloud.keys import KeyRing
from overspill_cloud.models import ServedModel, pick
from overspill_cloud.sealed_stream import SealedRequest, SealedStream
from overspill_cloud.store import UsageEntry
from overspill_cloud.streams import Run, Running, Stop, StreamLimits

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


@dataclass(slots=True)
class _Answer:
    """One admitted request and what has been answered so far."""

    stream: SealedStream
    request: Request
    sealed: SealedRequest
    model: ServedModel
    admitted: Admitted
    text: list[str]
    calls: list[ToolCall] = field(default_factory=list)
    tokens: int = 0
    finish: Finish | None = None

    def add(self, chunk: Chunk) -> None:
        self.text.append(chunk.text)
        self.calls += chunk.tool_calls
        self.tokens += len(chunk.token_ids)
        if chunk.finish is not None:
            self.finish = replace(chunk.finish, model=self.model.name)

    def cancelled(self) -> Finish:
        usage = Usage(completion_tokens=self.tokens)
        return Finish(FinishReason.CANCELLED, usage, self.model.name)


class Node:
    """The sealed service over its parts; :mod:`overspill_cloud.server` puts it on a wire."""

    def __init__(self, parts: NodeParts) -> None:
        self._parts = parts
        self._enrolment = Enrolment(parts.database, parts.admission, parts.clock)
        self._running = Running(parts.limits)
        self._draining = False
        self._arriving = 0

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

    # Sealed -----------------------------------------------------------------------------------

    async def chat(self, head: SealedHead, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """Answer one sealed request: the response nonce, then sealed frames."""
        with self._opening():
            stream = self._open(head)
            yield stream.response_nonce
            try:
                answer = await self._admit(stream, frames)
            except Exception as error:
                yield stream.error(self._refused(error, "admission"))
                return
        run = Run(answer.model.engine.generate(answer.request), self._parts.limits)
        self._running.add(stream.id, stream.keys, run)
        try:
            async with aclosing(self._frames(answer, run)) as sealed:
                async for frame in sealed:
                    yield frame
        except Exception as error:
            yield stream.error(self._refused(error, "answer"))
        finally:
            # Without its end the reader is gone: the run goes on for the grace, and no longer.
            self._running.leave(
                stream.id,
                complete=answer.finish is not None,
                then=lambda: self._settle(answer, run),
            )

    async def enroll(self, head: SealedHead, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """Enrol a device: its key signs the enrolment, its code pays for it, or its old key."""
        with self._opening():
            stream = self._open(head)
            yield stream.response_nonce
            try:
                sealed = await self._read(stream, frames)
                enrolled = await self._enrolment.enrol(sealed, th=stream.keys.th)
            except Exception as error:
                yield stream.error(self._refused(error, "enrolment"))
                return
        self._parts.log.write(events.DeviceEnrolled())
        yield stream.enrolled(enrolled)

    async def cancel(self, stream_id: bytes, mac: bytes) -> None:
        """Stop a stream; whether it existed or the MAC was right is not told."""
        try:
            self._running.cancel(stream_id, mac)
        except StreamCorrupt as error:
            self._refused(error, "cancel")

    async def drain(self, timeout_s: float) -> None:
        """Take no new streams; let those that run end, and move the rest after ``timeout_s``."""
        self._draining = True
        self._parts.log.write(events.NodeDraining())
        await self._running.drain(timeout_s)

    # In calling order -------------------------------------------------------------------------

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """A place among the requests that are still arriving: nobody is known yet, and each may
        hold 16 MiB."""
        if self._arriving >= self._parts.limits.max_arriving:
            raise BusyError("Too many requests are arriving.", mend="Try again later.")
        self._arriving += 1
        try:
            yield
        finally:
            self._arriving -= 1

    def _open(self, head: SealedHead) -> SealedStream:
        if self._draining:
            raise BusyError("The node is shutting down.", mend="Use another one.")
        epoch = self._parts.keys.lookup(head.nkc_sha256)
        if epoch is None:
            raise KeyUnknown("The node does not hold this key.", mend="Fetch its evidence again.")
        return SealedStream(head, epoch)

    async def _read(self, stream: SealedStream, frames: AsyncIterator[bytes]) -> SealedRequest:
        try:
            async with asyncio.timeout(self._parts.limits.request_timeout_s):
                return await stream.read(frames)
        except TimeoutError:
            raise InvalidRequest("The request did not arrive in time.") from None

    async def _admit(self, stream: SealedStream, frames: AsyncIterator[bytes]) -> _Answer:
        sealed = await self._read(stream, frames)
        admitted = await self._parts.admission.admit(
            sealed.signature, th=stream.keys.th, body=sealed.body
        )
        try:
            request = plaintext.request_from_bytes(sealed.body)
            model = pick(self._parts.models, request.model)
            await model.check_unchanged()
            if stream.id in self._running:
                raise DeviceRejected("This stream was already started.", reason="replay")
        except BaseException:
            admitted.release()
            raise
        # A name of its own for each request: sessions of a node share no prefix cache, and no id.
        own = sealed.signature.request_id.hex()
        request = replace(request, id=own, app=own)
        return _Answer(stream, request, sealed, model, admitted, [])

    async def _frames(self, answer: _Answer, run: Run) -> AsyncGenerator[bytes]:
        stream = answer.stream
        yield stream.event(plaintext.Accepted(answer.model.name))
        while answer.finish is None:
            chunks = await run.batch(self._parts.limits.heartbeat_s)
            if chunks:
                # What is ready together goes as one: fewer frames, and less said by their lengths.
                chunk = merge_chunks(chunks)
                answer.add(chunk)
                if chunk.has_content:
                    yield stream.event(chunk)
            elif run.ended:
                break
            else:
                yield stream.event(plaintext.Heartbeat())
        if answer.finish is None and run.ending is Stop.CANCELLED:
            answer.finish = answer.cancelled()
        if answer.finish is not None:
            # A worker that died meanwhile has loaded the file anew.
            await answer.model.check_unchanged()
            yield stream.final(answer.finish, self._receipt(answer, answer.finish))
        elif run.ending is Stop.DRAINED:
            yield stream.event(plaintext.Migrate("drain"))
        else:
            yield stream.error(self._refused(_failure(run), "engine"))

    def _receipt(self, answer: _Answer, finish: Finish) -> bytes:
        epoch, keys = answer.stream.epoch, answer.stream.keys
        content = response_content("".join(answer.text), answer.calls)
        claims = ReceiptClaims(
            nkc_sha256=epoch.nkc_sha256,
            th=keys.th,
            request_id=answer.sealed.signature.request_id,
            request_commitment=commitment(keys.commitment_salt, answer.sealed.body),
            response_commitment=commitment(keys.commitment_salt, content),
            model=finish.model,
            model_sha256=answer.model.sha256,
            adapter=finish.adapter or "",
            adapter_sha256=answer.model.adapter_sha256(finish.adapter),
            prompt_tokens=finish.usage.prompt_tokens,
            completion_tokens=finish.usage.completion_tokens,
            unix_s=int(self._parts.clock()),
            finish_reason=finish.reason.value,
        )
        return epoch.receipt_key.sign(claims)

    def _settle(self, answer: _Answer, run: Run) -> None:
        answer.admitted.release()
        outcome = _outcome(answer, run)
        usage = answer.finish.usage if answer.finish else Usage(completion_tokens=answer.tokens)
        self._parts.log.write(
            events.StreamEnded(
                outcome=outcome,
                model=answer.model.name,
                prompt_tokens_le=events.bucket(usage.prompt_tokens),
                completion_tokens_le=events.bucket(usage.completion_tokens),
            )
        )
        entry = UsageEntry(
            request_id=answer.sealed.signature.request_id,
            attempt=answer.request.attempt,
            thumbprint=answer.admitted.device.thumbprint,
            unix_s=int(self._parts.clock()),
            model=answer.model.name,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            outcome=outcome,
        )
        self._parts.database.submit(lambda: self._parts.database.store.append_usage(entry))

    def _refused(self, error: Exception, where: str) -> OverspillError:
        """Log a refusal by its code alone, and give what may be sealed to the client."""
        if isinstance(error, _TELLABLE):
            reason = error.reason if isinstance(error, DeviceRejected) else ""
            self._parts.log.write(events.RequestRefused(error.code, reason))
            return error
        self._parts.log.write(events.InternalError(type(error).__name__, where))
        return EngineError("The node failed while it worked on this request.", mend="Try again.")


def _failure(run: Run) -> OverspillError:
    if isinstance(run.ending, ModelError):
        # A worker that started anew names the file as this machine knows it.
        return EngineError("The node's model cannot be loaded any more.")
    if isinstance(run.ending, OverspillError):
        return run.ending
    return EngineError("The engine stopped without an end.")


def _outcome(answer: _Answer, run: Run) -> str:
    if answer.finish is not None:
        return answer.finish.reason.value
    if isinstance(run.ending, OverspillError):
        return run.ending.code
    # The engine may have come to its end while nobody read it any more.
    return run.ending or Stop.DETACHED
