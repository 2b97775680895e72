"""What travels inside sealed frames, between our types and bytes.

Request side: a :class:`Auth`, then the body (a chat request or an enrolment). Response side: one
:class:`Event` per frame, numbered from 0 without gaps. Decoders raise
:class:`~overspill.errors.InvalidRequest` and nothing else; an event of a newer version decodes to
``None`` and is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from overspill import errors
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Finish, Request
from overspill.types.evidence import EvidenceBundle
from overspill.types.replicas import ReplicaList
from overspill.wire import convert
from overspill.wire.v1 import chat_pb2, sealed_pb2, trust_pb2

_M = TypeVar("_M", bound=Message)


class Auth(NamedTuple):
    """Who asks: the first plaintext frame of a request (``RequestAuth``)."""

    request_id: bytes
    unix_ms: int
    device_thumbprint: bytes
    flags: int
    grant: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The body of an enrolment: DER SubjectPublicKeyInfo, the one-time code or in its place a
    rotation (``overspill.sealing.rotation``), the wished end."""

    public_key: bytes
    code: str
    not_after_unix: int
    label: str = ""
    rotation: bytes = b""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A node's answer to an enrolment."""

    device_thumbprint: bytes
    not_after_unix: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request was admitted; ``prompt_tokens`` is 0 where the engine can't count ahead."""

    model: str
    prompt_tokens: int = 0
    queue_position: int = 0


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The node lives and works, but has nothing to say yet."""

    queue_position: int = 0


@dataclass(frozen=True, slots=True)
class Migrate:
    """The node will not finish this stream: go on elsewhere."""

    reason: str


@dataclass(frozen=True, slots=True)
class Final:
    """The confirmed end: what finished, the hash of all plaintext before it, the receipt."""

    finish: Finish
    transcript_sha256: bytes
    receipt: bytes


Event = Accepted | Chunk | Heartbeat | Migrate | Final | errors.OverspillError


def auth_to_bytes(auth: Auth) -> bytes:
    """Encode who asks."""
    return sealed_pb2.RequestAuth(**auth._asdict()).SerializeToString()


def auth_from_bytes(data: bytes) -> Auth:
    """Inverse of :func:`auth_to_bytes`."""
    m = _parse(sealed_pb2.RequestAuth, data)
    return Auth(m.request_id, m.unix_ms, m.device_thumbprint, m.flags, m.grant, m.signature)


def request_to_bytes(request: Request) -> bytes:
    """Encode a chat request; app and privacy floor stay on the device."""
    return convert.request_to_proto(request).SerializeToString()


def request_from_bytes(data: bytes) -> Request:
    """Inverse of :func:`request_to_bytes`."""
    return convert.request_from_proto(_parse(chat_pb2.ChatRequest, data))


def enrolment_to_bytes(enrolment: Enrolment) -> bytes:
    """Encode an enrolment."""
    return sealed_pb2.EnrollRequest(
        public_key=enrolment.public_key,
        code=enrolment.code,
        not_after_unix=enrolment.not_after_unix,
        label=enrolment.label,
        rotation=enrolment.rotation,
    ).SerializeToString()


def enrolment_from_bytes(data: bytes) -> Enrolment:
    """Inverse of :func:`enrolment_to_bytes`."""
    m = _parse(sealed_pb2.EnrollRequest, data)
    return Enrolment(m.public_key, m.code, m.not_after_unix, m.label, m.rotation)


def enrolled_to_bytes(enrolled: Enrolled) -> bytes:
    """Encode the answer to an enrolment."""
    return sealed_pb2.EnrollResponse(
        device_thumbprint=enrolled.device_thumbprint, not_after_unix=enrolled.not_after_unix
    ).SerializeToString()


def enrolled_from_bytes(data: bytes) -> Enrolled:
    """Inverse of :func:`enrolled_to_bytes`."""
    m = _parse(sealed_pb2.EnrollResponse, data)
    return Enrolled(m.device_thumbprint, m.not_after_unix)


def replicas_from_bytes(data: bytes) -> ReplicaList:
    """A node's signed list of replicas; :func:`convert.replicas_to_bytes` makes it."""
    message = _parse(trust_pb2.ReplicaList, data)
    addresses = tuple(replica.address for replica in message.replicas)
    return ReplicaList(addresses, message.issued_unix, message.valid_s)


def cards_from_bytes(data: bytes) -> tuple[ModelCard, ...]:
    """A node's signed list of model cards; :func:`convert.cards_to_bytes` makes it."""
    return tuple(convert.card_from_proto(m) for m in _parse(trust_pb2.CardList, data).cards)


def bundle_to_bytes(bundle: EvidenceBundle) -> bytes:
    """An evidence bundle as a client keeps it."""
    return convert.bundle_to_proto(bundle).SerializeToString(deterministic=True)


def bundle_from_bytes(data: bytes) -> EvidenceBundle:
    """Inverse of :func:`bundle_to_bytes`."""
    return convert.bundle_from_proto(_parse(trust_pb2.EvidenceBundle, data))


def event_to_bytes(seq: int, event: Event) -> bytes:
    """Encode event number ``seq`` of a stream."""
    out = chat_pb2.ChatEvent(seq=seq)
    match event:
        case Chunk():
            convert.write_delta(event, out.delta)
        case Final():
            out.final.CopyFrom(convert.finish_to_final(event.finish))
            out.final.transcript_sha256 = event.transcript_sha256
            out.final.receipt = event.receipt
        case Accepted():
            out.accepted.model = event.model
            out.accepted.prompt_tokens = event.prompt_tokens
            out.accepted.queue_position = event.queue_position
        case Heartbeat():
            out.heartbeat.queue_position = event.queue_position
        case Migrate():
            out.migrate.reason = event.reason
        case errors.OverspillError():
            out.error.CopyFrom(convert.error_to_proto(event))
    return out.SerializeToString()


def event_from_bytes(data: bytes) -> tuple[int, Event | None]:
    """Inverse of :func:`event_to_bytes`; the event is ``None`` when its kind is not known."""
    message = _parse(chat_pb2.ChatEvent, data)
    return message.seq, _event(message)


def _event(message: chat_pb2.ChatEvent) -> Event | None:
    match message.WhichOneof("event"):
        case "delta":
            return convert.delta_to_chunk(message.delta)
        case "final":
            final = message.final
            finish = convert.final_to_finish(final)
            return Final(finish, final.transcript_sha256, final.receipt)
        case "accepted":
            a = message.accepted
            return Accepted(a.model, a.prompt_tokens, a.queue_position)
        case "heartbeat":
            return Heartbeat(message.heartbeat.queue_position)
        case "migrate":
            return Migrate(message.migrate.reason)
        case "error":
            return convert.error_from_proto(message.error)
        case _:
            return None


def _parse(kind: type[_M], data: bytes) -> _M:
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise errors.InvalidRequest(f"Not a valid {kind.__name__}.") from error
    return message
