"""One admitted request and its answer: sealed once, into a ring, for whoever reads it.

The reader drives: what the engine said since is sealed when he comes for it. Who reads may change
(a lost connection, a repeated start); what was sealed never does.
"""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace

from overspill.errors import (
    ContextOverflow,
    DoesNotFit,
    EngineDied,
    EngineError,
    ModelError,
    OverspillError,
    error_of,
)
from overspill.sealing.receipt import ReceiptClaims, commitment, response_content
from overspill.sealing.signing import RequestSignature
from overspill.types.chat import Chunk, Finish, FinishReason, Request, ToolCall, merge_chunks
from overspill.types.usage import Usage
from overspill.wire import plaintext
from overspill_cloud.admission import Admitted
from overspill_cloud.models import ServedModel
from overspill_cloud.pace import Pace
from overspill_cloud.ring import FrameRing
from overspill_cloud.sealed_stream import SealedRequest, SealedStream
from overspill_cloud.streams import Run, Stop, StreamLimits

FIRST_WAIT_S = 0.005
READY_BYTES = 64 << 10
"""Frames that are ready go together up to here."""
KEPT_BYTES = 16 << 10
"""What an answer takes while it is kept, beside what it says: keys, claims, timers."""


class Displaced(Exception):
    """Somebody else reads this stream now: the same client, over a newer connection."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Of what was asked what outlives the engine's work: by whom, over which keys, of which model.

    The request itself, which may be large, is not here; ``commitment`` stands for its bytes.
    """

    stream: SealedStream
    signature: RequestSignature
    commitment: bytes
    attempt: int
    model: ServedModel
    admitted: Admitted

    @property
    def id(self) -> str:
        """The request's name at the engine: its own, so that sessions of a node share nothing."""
        return self.signature.request_id.hex()


class LiveAnswer:
    """An answer under way, or one that ended and can still be had again. ``request`` goes to the
    engine and is not kept.

    ``refused`` makes of any error what may be told; ``left`` is called whenever a reader goes
    and nobody took over; ``settled`` once, when the engine has let go. ``clock`` gives Unix
    seconds.
    """

    def __init__(
        self,
        asked: Asked,
        request: Request,
        limits: StreamLimits,
        *,
        pace: Pace,
        clock: Callable[[], float],
        refused: Callable[[Exception], OverspillError],
        left: Callable[[LiveAnswer], None],
        settled: Callable[[LiveAnswer], None],
    ) -> None:
        self.asked = asked
        self.ring = FrameRing(limits.ring_bytes, limits.ring_s, time.monotonic)
        self.is_forgotten = False
        self._limits = limits
        self._pace = pace
        self._clock = clock
        self._refused = refused
        self._left = left
        self._text: list[str] = []
        self._calls: list[ToolCall] = []
        self._finish: Finish | None = None
        self._reader: object | None = None
        self._said_s = -math.inf
        """When words were sealed last, on the monotonic clock."""
        self.ring.append(asked.stream.event(plaintext.Accepted(asked.model.name)))
        chunks = asked.model.engine.generate(request)
        self.run = Run(chunks, limits, lambda: settled(self))

    @property
    def is_read(self) -> bool:
        """Whether somebody reads it now."""
        return self._reader is not None

    def is_same_start(self, sealed: SealedRequest) -> bool:
        """Whether a repeated start is the one that began this answer, byte for byte."""
        asked = self.asked
        found = commitment(asked.stream.keys.commitment_salt, sealed.body)
        return sealed.signature == asked.signature and hmac.compare_digest(found, asked.commitment)

    @property
    def kept_bytes(self) -> int:
        """What it takes in memory while it is kept, roughly."""
        said = sum(len(text) for text in self._text)
        said += sum(len(call.arguments) for call in self._calls)
        return KEPT_BYTES + self.ring.size_bytes + self.run.queued_bytes + said

    async def frames(self, start: int) -> AsyncGenerator[Sequence[bytes]]:
        """Frames from ``start`` to the end, kept ones first, each time those that are ready;
        whoever read before is displaced.

        Raises ``Displaced`` when another reader comes, and ``FrameGone`` for a frame that is not
        kept.
        """
        mine = self._reader = object()
        self.run.wake()
        index = start
        try:
            if self.ring.end == 1:
                # What an engine says at once goes with the acceptance: a message less before it.
                await self.run.ready(FIRST_WAIT_S)
                self._seal_said(mine)
            while True:
                ready = self.ring.read_on(index, READY_BYTES)
                if ready:
                    yield ready
                    index += len(ready)
                elif self.ring.is_closed:
                    return
                else:
                    await self._seal_more(mine)
        finally:
            if self._reader is mine:
                self._reader = None
                self._left(self)

    def forget(self) -> None:
        """End whoever still reads; nothing can be had from here on."""
        self.is_forgotten = True
        self._reader = None
        self.run.wake()

    @property
    def usage(self) -> Usage:
        """What the ledger counts: the engine's own numbers, or the tokens that it gave."""
        if self.run.finish is not None:
            return self.run.finish.usage
        return Usage(completion_tokens=self.run.tokens)

    @property
    def outcome(self) -> str:
        """How it ended, in one word."""
        if self.run.finish is not None:
            return self.run.finish.reason.value
        ending = self.run.ending
        if isinstance(ending, OverspillError):
            return ending.code
        return ending or Stop.DETACHED

    # In calling order -------------------------------------------------------------------------

    async def _seal_more(self, mine: object) -> None:
        """Seal what came since, or the end, or a heartbeat where nothing came for a while. The end
        comes by itself: signing it must not hold back the words before it."""
        if self._finish is None:
            await self.run.ready(self._limits.heartbeat_s)
            await self.run.gather(self._said_s + self._pace.gather_s - time.monotonic())
        if self._seal_said(mine):
            return
        if self._finish is not None or self.run.ended:
            await self._seal_end(mine)
        else:
            self.ring.append(self.asked.stream.event(self._heartbeat()))

    def _seal_said(self, mine: object) -> bool:
        """Seal what the engine said since; False when that is nothing."""
        self._check_reader(mine)
        chunks = self.run.take()
        if chunks:
            # What is ready together goes as one: fewer frames, and less said by their lengths.
            chunk = merge_chunks(chunks)
            self._add(chunk)
            if chunk.has_content:
                self.ring.append(self.asked.stream.event(chunk))
                self._said_s = time.monotonic()
        return bool(chunks)

    def _check_reader(self, mine: object) -> None:
        if self._reader is not mine:
            raise Displaced("This stream is read over another connection now.")

    def _add(self, chunk: Chunk) -> None:
        self._text.append(chunk.text)
        self._calls += chunk.tool_calls
        if chunk.finish is not None:
            self._finish = replace(chunk.finish, model=self.asked.model.name)

    def _heartbeat(self) -> plaintext.Heartbeat:
        position = self.asked.model.engine.queue_position(self.asked.id)
        return plaintext.Heartbeat(position or 0)

    async def _seal_end(self, mine: object) -> None:
        stream, ending = self.asked.stream, self.run.ending
        if self._finish is None and ending is Stop.CANCELLED:
            self._finish = self._cancelled()
        try:
            if self._finish is not None:
                # A worker that died meanwhile has loaded the file anew.
                await self.asked.model.check_unchanged()
                self._check_reader(mine)
                end = stream.final(self._finish, self._receipt(self._finish))
            elif isinstance(ending, Stop):
                end = stream.event(plaintext.Migrate(ending.value))
            else:
                end = stream.error(self._refused(_failure(self.run)))
        except Displaced:
            raise
        except Exception as error:
            end = stream.error(self._refused(error))
        self.ring.append(end, closes=True)
        # The receipt has named them: from here on the frames are all that can be asked for.
        self._text, self._calls = [], []

    def _cancelled(self) -> Finish:
        return Finish(FinishReason.CANCELLED, self.usage, self.asked.model.name)

    def _receipt(self, finish: Finish) -> bytes:
        asked = self.asked
        epoch, keys = asked.stream.epoch, asked.stream.keys
        content = response_content("".join(self._text), self._calls)
        claims = ReceiptClaims(
            nkc_sha256=epoch.nkc_sha256,
            th=keys.th,
            request_id=asked.signature.request_id,
            request_commitment=asked.commitment,
            response_commitment=commitment(keys.commitment_salt, content),
            model=finish.model,
            model_sha256=asked.model.sha256,
            adapter=finish.adapter or "",
            adapter_sha256=asked.model.adapter_sha256(finish.adapter),
            prompt_tokens=finish.usage.prompt_tokens,
            completion_tokens=finish.usage.completion_tokens,
            unix_s=int(self._clock()),
            finish_reason=finish.reason.value,
        )
        return epoch.receipt_key.sign(claims)


def _failure(run: Run) -> OverspillError:
    """How the run failed, for its reader. What is not about the request itself is said in words of
    the node's own: an engine's may be a path, a line of a log, or of another device's request."""
    ending = run.ending
    if isinstance(ending, ModelError):
        return EngineError("The node's model cannot be loaded any more.")
    if isinstance(ending, DoesNotFit) and not isinstance(ending, ContextOverflow):
        return DoesNotFit("The node's model does not fit its machine any more.")
    if isinstance(ending, EngineDied):
        return EngineDied("The node's engine is gone.", mend="Ask again: it starts anew.")
    if isinstance(ending, EngineError):
        words = {"message": "The node's engine failed at this request.", "mend": "Try again."}
        return error_of(ending.code, words)
    if isinstance(ending, OverspillError):
        return ending
    return EngineError("The engine stopped without an end.")
