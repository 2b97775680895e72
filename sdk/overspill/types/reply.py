"""What the app gets: an answer, whole or in pieces, that says where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from overspill.types.chat import (
    Finish,
    FinishReason,
    Message,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)
from overspill.types.route import RouteTaken
from overspill.types.usage import Usage

OutputT = TypeVar("OutputT")


@dataclass(frozen=True, slots=True)
class ReceiptRecord:
    """A node's signed receipt and what is needed to check it offline, as of its own time.

    ``salt`` stays on the device: with it, the receipt's commitments can be checked against the
    request and the answer by whoever still has them. ``assurance`` is the verifier's word; so is
    ``verdict``, in JSON: release, measurement, type of evidence, policy. ``evidence`` is what that
    was said of, and ``device_signature`` the device's own over all of this, when it came.
    """

    id: str
    request_id: str
    unix_s: int
    node: str
    assurance: str
    data: bytes
    node_key_config: bytes
    receipt_public_key: bytes
    transcript_th: bytes
    salt: bytes
    evidence: bytes = b""
    verdict: str = ""
    device_public_der: bytes = b""
    device_signature: bytes = b""


@dataclass(frozen=True, slots=True)
class ReplyChunk:
    """A piece of an answer.

    ``route`` is final before the first piece; the last piece (the one with ``finish``) carries
    it once more with what is only known then: bytes sent, and the receipt. With ``output`` asked
    for, that piece has the value, and those before it in ``partial`` the JSON so far, unchecked.
    """

    route: RouteTaken
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    finish: Finish | None = None
    receipt: ReceiptRecord | None = None
    tool_call_deltas: tuple[ToolCallDelta, ...] = ()
    reasoning: str = ""
    output: Any = None
    partial: Any = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. ``model`` names who answered; ``receipt`` is None where nothing left.

    ``ttft_s`` is seconds from the call to the first non-empty text, ``total_s`` to the end.
    """

    text: str
    route: RouteTaken
    usage: Usage
    finish_reason: FinishReason
    model: str
    request_id: str
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    receipt: ReceiptRecord | None = None
    ttft_s: float | None = None
    total_s: float = 0.0
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class TypedReply(Reply, Generic[OutputT]):
    """A whole answer, read as what ``output`` asked for: an instance of the type, or for a JSON
    schema what the JSON means. None where the answer calls tools and says nothing."""

    output: OutputT = None  # type: ignore[assignment]  # set by who makes one; a field after defaults needs one


@dataclass(frozen=True, slots=True)
class ToolResult:
    """A call that was made: what the model was told, and in ``error`` what failed, if it did."""

    call: ToolCall
    content: str
    error: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """One answer of a run, and the calls that it made; none in the last step."""

    reply: Reply
    results: tuple[ToolResult, ...] = ()


@dataclass(frozen=True, slots=True)
class RunReply(TypedReply[OutputT]):
    """The last answer of a run. ``usage`` is that of this answer alone; ``steps`` has them all.

    ``messages`` is the whole conversation, this answer included: what to go on from.
    """

    steps: tuple[Step, ...] = ()
    messages: tuple[Message, ...] = ()

    @property
    def total_tokens(self) -> int:
        """Prompts and completions of all steps."""
        return sum(step.reply.usage.total_tokens for step in self.steps)


class AvailabilityState(StrEnum):
    """Whether a model can answer now."""

    UNAVAILABLE = "unavailable"
    DOWNLOADABLE = "downloadable"
    DOWNLOADING = "downloading"
    AVAILABLE = "available"


@dataclass(frozen=True, slots=True)
class Availability:
    """The device's and the cloud's state, each with a reason in words."""

    device: AvailabilityState
    device_reason: str
    cloud: AvailabilityState
    cloud_reason: str
