"""R11: random bytes at every call of a node, and at every parser of what comes from outside."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from faults.history import record
from faults.nodes import FAR_UNIX, running
from faults.rows_road import ask
from faults.scale import Measured, Scale, tell

from overspill.errors import OverspillError
from overspill.identity.keys import SoftwareKey
from overspill.sealing import receipt, rotation
from overspill.sealing.frames import CLIENT, FrameOpener, FrameSealer, FrameType
from overspill.sealing.schedule import derive
from overspill.transport.base import SealedHead
from overspill.transport.grpc import GrpcOptions, GrpcTransport
from overspill.trust.measured import MeasuredLog
from overspill.trust.nkc import NodeKeyConfig
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk
from overspill.types.evidence import EvidenceBundle
from overspill.types.replicas import ReplicaList
from overspill.wire import convert, plaintext
from overspill.wire.v1 import sealed_pb2, trust_pb2

UNTYPED = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
"""What a node answers when something broke that nobody thought of."""
PARSED_OF_TEN = 3
"""So many of ten cases go to the parsers, the others over the wire."""
CALL_S = 10.0


@dataclass
class Tally:
    """What was answered as it must not be, and how often it took more than a second."""

    untyped: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)

    async def of(self, what: str, case: Awaitable[object]) -> None:
        """Run one case: it may give something, or refuse by an error of the tree."""
        begun = time.monotonic()
        try:
            await case
        except (OverspillError, grpc.aio.AioRpcError) as error:
            status = error if isinstance(error, grpc.aio.AioRpcError) else error.__cause__
            if isinstance(status, grpc.aio.AioRpcError) and status.code() in UNTYPED:
                self.untyped.append(f"{what}: {status.code().name}: {status.details()}")
        except Exception as error:
            self.untyped.append(f"{what}: {error!r}")
        if (took_s := time.monotonic() - begun) > 1:
            self.slow.append(f"{what}: {took_s:.1f} s")


async def r11(scale: Scale, folder: Path) -> Measured:
    """Random bytes, and messages that were bent: typed codes, nothing hangs, the node lives."""
    count, choice = scale.of(20_000, short=300), random.Random(scale.seed("R11"))
    tally = Tally()
    with running(folder, 1) as fleet:
        tls = GrpcOptions(ca_pem=fleet.certificate.read_bytes())
        road = GrpcTransport(fleet.nodes[0].listen, tls)
        bundle = await road.get_bundle()
        parsers, config = _parsers(bundle), bundle.node_key_config
        credentials = grpc.ssl_channel_credentials(tls.ca_pem)
        async with grpc.aio.secure_channel(fleet.nodes[0].listen, credentials) as channel:
            methods = list(_methods(channel))
            for _ in range(count):
                which = choice.randrange(10)
                if which < PARSED_OF_TEN:
                    name, parse, sample = choice.choice(parsers)
                    await tally.of(name, _parsed(parse, _bent(choice, sample)))
                elif which < 7:
                    await tally.of("our road", _through(road, choice, config))
                else:
                    method = choice.choice(methods)
                    await tally.of(method.path, method.call(choice))
        await road.aclose()
        await fleet.enrol()
        alive = await record(fleet.client(), ask(20, 1))
        internal = fleet.nodes[0].log.read_text().count("InternalError")
    tell("R11", tally.untyped)
    tell("R11", tally.slow)
    return {
        "untyped": len(tally.untyped) + internal + (not alive.is_complete),
        "over_1_s": len(tally.slow),
    }


# Over the wire --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A call of a node by its path, to which any bytes can be sent."""

    path: str
    begin: Callable[..., Any]
    takes_many: bool
    gives_many: bool
    sample: bytes

    async def call(self, choice: random.Random) -> None:
        """Send noise, and read what comes; of a watch the first word."""
        sent = [_bent(choice, self.sample) for _ in range(choice.randrange(4))]
        call = self.begin(_each(sent) if self.takes_many else (sent or [b""])[0], timeout=CALL_S)
        try:
            if not self.gives_many:
                await call
                return
            async for _ in call:
                if self.path.endswith("Watch"):
                    return
        finally:
            call.cancel()


def _methods(channel: grpc.aio.Channel) -> Iterator[Method]:
    """Every method that a node serves, with something that it would take."""
    nonce = trust_pb2.ChallengeRequest(nonce=bytes(range(32))).SerializeToString()
    head = sealed_pb2.RequestHead(nkc_sha256=bytes(32), sealed_key=bytes(1216))
    frame = sealed_pb2.SealedFrame(head=head, more=[bytes(64)]).SerializeToString()
    resume = sealed_pb2.ResumeRequest(stream_id=bytes(32), mac=bytes(32), next_frame=7)
    samples = {"Challenge": nonce, "Chat": frame, "Enroll": frame}
    samples |= dict.fromkeys(("Resume", "Cancel"), resume.SerializeToString())
    found = [
        (f"/{service.full_name}/{method.name}", method.client_streaming, method.server_streaming)
        for file in (sealed_pb2, trust_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    health = "/grpc.health.v1.Health/"
    for path, many_in, many_out in [
        *found,
        (f"{health}Check", False, False),
        (f"{health}Watch", False, True),
    ]:
        ways = ("stream" if many else "unary" for many in (many_in, many_out))
        begin = getattr(channel, "_".join(ways))(path)
        sample = samples.get(path.rpartition("/")[2], b"\x0a\x04echo")
        yield Method(path, begin, many_in, many_out, sample)


async def _each(sent: list[bytes]) -> AsyncIterator[bytes]:
    for one in sent:
        yield one


async def _through(road: GrpcTransport, choice: random.Random, config: bytes) -> None:
    """A call whose messages are well made, and whose content is noise."""
    key = choice.choice([hashlib.sha256(config).digest(), _noise(choice, 64)])
    sealed_key = choice.choice([_noise(choice, 2000), choice.randbytes(1216), b""])
    head = SealedHead(key, sealed_key)
    frames = _each([_noise(choice, 400) for _ in range(choice.randrange(4))])
    stream, mac = _noise(choice, 64), _noise(choice, 64)
    match choice.randrange(6):
        case 0:
            await road.cancel(stream, mac)
        case 1:
            await _drained(road.resume(stream, mac, choice.getrandbits(64)))
        case 2:
            await road.challenge(stream)
        case 3:
            await _drained(road.chat(head, frames))
        case 4:
            await _drained(road.enroll(head, frames))
        case _:
            await choice.choice([road.locate, road.get_cards, road.get_bundle])()


async def _drained(frames: Any) -> None:
    async with aclosing(frames) as opened:
        async for _ in opened:
            pass


# Parsers --------------------------------------------------------------------------------------

Parser = tuple[str, Callable[[bytes], object], bytes]
"""A name, what parses, and something that it takes."""


def _parsers(bundle: EvidenceBundle) -> list[Parser]:
    key, words = SoftwareKey.generate(FAR_UNIX), plaintext
    auth = words.Auth(bytes(16), 1, key.thumbprint, 0, b"", bytes(64))
    enrolment = words.Enrolment(key.public_der, "code", 0)
    card = ModelCard(name="echo", context=1, runtime="echo")
    turned = rotation.sign_rotation(key, key, not_after_unix=1, unix_ms=1)
    keys = derive(bytes(32), bytes(1216), bytes(32)).request
    frame = FrameSealer(keys, CLIENT).seal(FrameType.AUTH, words.auth_to_bytes(auth))
    claims = bytes(64)
    return [
        ("auth", words.auth_from_bytes, words.auth_to_bytes(auth)),
        ("request", words.request_from_bytes, words.request_to_bytes(ask(20, 1))),
        ("enrolment", words.enrolment_from_bytes, words.enrolment_to_bytes(enrolment)),
        ("event", words.event_from_bytes, words.event_to_bytes(3, Chunk("x", (1,)))),
        ("cards", words.cards_from_bytes, convert.cards_to_bytes([card])),
        (
            "replicas",
            words.replicas_from_bytes,
            convert.replicas_to_bytes(ReplicaList(("a:1",), 1, 30)),
        ),
        ("bundle", words.bundle_from_bytes, words.bundle_to_bytes(bundle)),
        ("node key configuration", NodeKeyConfig.decode, bundle.node_key_config),
        (
            "measured log",
            lambda data: MeasuredLog.decode([data, *bundle.measured_log[1:]]),
            bundle.measured_log[0],
        ),
        ("receipt", receipt.read_claims, claims),
        ("rotation", lambda data: rotation.open_rotation(data, key.public_der), turned),
        ("frame", lambda data: FrameOpener(keys, CLIENT).open(data), frame),
    ]


async def _parsed(parse: Callable[[bytes], object], data: bytes) -> None:
    parse(data)


# Noise ----------------------------------------------------------------------------------------


def _noise(choice: random.Random, most: int) -> bytes:
    return choice.randbytes(choice.randrange(most))


def _bent(choice: random.Random, sample: bytes) -> bytes:
    """Noise, or the sample with bytes that were changed, left out, put in or cut off."""
    if not sample or choice.random() < 0.3:
        return _noise(choice, 400)
    data = bytearray(sample)
    for _ in range(choice.randrange(1, 6)):
        at = choice.randrange(len(data) + 1)
        match choice.randrange(4):
            case 0:
                data[at : at + 1] = choice.randbytes(1)
            case 1:
                del data[at : at + choice.randrange(1, 9)]
            case 2:
                data[at:at] = _noise(choice, 9)
            case _:
                del data[at + choice.randrange(64) :]
    return bytes(data)
