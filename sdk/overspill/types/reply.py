"""What the app gets: an answer, whole or in pieces, that says where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from overspill.types.chat import Finish, FinishReason, TokenLogprob, ToolCall, ToolCallDelta
from overspill.types.route import RouteTaken
from overspill.types.usage import Usage


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
    it once more with what is only known then: bytes sent, and the receipt.
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
