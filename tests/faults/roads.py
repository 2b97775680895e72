"""Roads to nodes that tell what passes them: what a client does by itself is seen there."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import grpc
import grpc.aio

from overspill.transport.base import SealedHead
from overspill.transport.grpc import GrpcOptions, GrpcTransport, _Open

WINDOW_BYTES = 65_536


class WatchedRoad(GrpcTransport):
    """``begun`` is called when a stream is begun or gone back to, ``answered`` at each word of
    the node's to a new one: from the first on it is admitted."""

    def __init__(
        self,
        address: str,
        options: GrpcOptions,
        *,
        begun: Callable[[], None] = lambda: None,
        answered: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(address, options)
        self._begun = begun
        self._answered = answered

    def chat(self, head: SealedHead, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        self._begun()
        return self._telling(super().chat(head, frames))

    def resume(self, stream_id: bytes, mac: bytes, next_frame: int) -> AsyncGenerator[bytes]:
        self._begun()
        return super().resume(stream_id, mac, next_frame)

    async def _telling(self, call: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        async with aclosing(call) as frames:
            async for frame in frames:
                self._answered()
                yield frame


class NarrowRoad(GrpcTransport):
    """As of a machine that takes no more than HTTP/2's first window ahead of its reader: by default
    gRPC takes megabytes."""

    def _opened(self) -> _Open:
        if self._open is None and not self._closed:
            settings = [
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
                ("grpc.ssl_target_name_override", self._options.server_name),
            ]
            credentials = grpc.ssl_channel_credentials(self._options.ca_pem)
            self._open = _Open(grpc.aio.secure_channel(self._address, credentials, settings))
        return super()._opened()


@dataclass
class Watch:
    """When a client turned to a road, and from when on its node was silent (s, monotonic)."""

    turned_s: list[float] = field(default_factory=list)
    silent_s: float = float("inf")
    address: str = ""
    """Where it turned to last: the preferred one, unless that did not answer."""
    struck: str = ""
    """Where it was when its node fell silent."""

    def road(self, address: str, options: GrpcOptions) -> WatchedRoad:
        """A road that is watched."""

        def begun() -> None:
            self.turned_s.append(time.monotonic())
            self.address = address

        return WatchedRoad(address, options, begun=begun)

    def silence(self) -> None:
        """The node is silent from now on."""
        self.silent_s, self.struck = time.monotonic(), self.address

    @property
    def seen_s(self) -> float:
        """Seconds of silence until the client did something about it; infinite for never."""
        later = (at for at in self.turned_s if at > self.silent_s)
        return next(later, float("inf")) - self.silent_s
