"""The addresses of a fleet's nodes, as DNS tells them: behind a headless Service of Kubernetes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from overspill.errors import UsageError

ASK_S: Final = 5.0
_ALL: Final = "*."
Resolver = Callable[[str], list[str]]


def resolve(name: str) -> list[str]:
    """The IP addresses of a name, by this machine's resolver. Raises ``OSError``."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [str(where[0]) for *_, where in found]


class DnsReplicas:
    """Who is behind ``NAME:PORT``, asked every :data:`ASK_S` seconds, within ``following()``.

    ``NAME:PORT`` tells the addresses themselves. ``*.NAME:PORT`` tells ``10-0-0-7.NAME:PORT``, for
    which one certificate, ``*.NAME``, can stand: CoreDNS gives the pods behind a headless Service
    these names (its plugin ``kubernetes``, where ``endpoint_pod_names`` is not set).
    Raises ``UsageError`` for another form.
    """

    def __init__(self, text: str, resolver: Resolver = resolve) -> None:
        name, colon, port = text.rpartition(":")
        self._named = name.startswith(_ALL)
        self._name = name.removeprefix(_ALL)
        is_port = port.isascii() and port.isdigit() and 0 < int(port) <= 65535
        if not colon or not is_port or not self._name or set(self._name) & set("*:/ "):
            raise UsageError(
                f"'{text}' names no replicas.",
                mend="Give --replicas-dns NAME:PORT, or '*.NAME:PORT' for names of their own.",
            )
        self._port = port
        self._resolver = resolver
        self._addresses: tuple[str, ...] = ()

    def read(self) -> tuple[str, ...]:
        """Who was there when it was asked last."""
        return self._addresses

    def refresh(self) -> None:
        """Ask once. Who cannot be asked, or knows nobody, changes nothing: a node serves here."""
        try:
            found = self._resolver(self._name)
        except OSError:
            return
        if found:
            self._addresses = tuple(self._told(one) for one in sorted(set(found)))

    @contextmanager
    def following(self) -> Iterator[None]:
        """Keep asking, in a thread that nobody waits for: a resolver may take its time."""
        ended = threading.Event()

        def follow() -> None:
            self.refresh()
            while not ended.wait(ASK_S):
                self.refresh()

        threading.Thread(target=follow, name="overspill-replicas", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def _told(self, address: str) -> str:
        if self._named:
            own = address.replace(".", "-").replace(":", "-")
            return f"{own}.{self._name}:{self._port}"
        return f"[{address}]:{self._port}" if ":" in address else f"{address}:{self._port}"
