"""``openai()``: where other clients find these models, and how they get there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from overspill.errors import MissingExtra


@dataclass(frozen=True, slots=True)
class OpenAIAccess:
    """For any client of OpenAI's interface. Good while the client that gave it is open.

    ``socket`` is a Unix socket; where it is None, ``base_url`` is on loopback and ``api_key`` a
    token. ::

        client = openai.OpenAI(**ai.openai().options())
    """

    base_url: str
    api_key: str
    socket: str | None = None

    def options(self) -> dict[str, Any]:
        """Arguments for ``openai.OpenAI``; with a socket, an HTTP client that goes there."""
        return self._options("Client", "HTTPTransport")

    def async_options(self) -> dict[str, Any]:
        """Arguments for ``openai.AsyncOpenAI``."""
        return self._options("AsyncClient", "AsyncHTTPTransport")

    def _options(self, client: str, transport: str) -> dict[str, Any]:
        found: dict[str, Any] = {"base_url": self.base_url, "api_key": self.api_key}
        if self.socket is not None:
            http = _http()
            way = getattr(http, transport)(uds=self.socket)
            found["http_client"] = getattr(http, client)(transport=way, timeout=None)
        return found


def _http() -> Any:
    """The HTTP library that OpenAI's client brings."""
    for name in ("httpx2", "httpx"):
        if find_spec(name) is not None:
            return import_module(name)
    raise MissingExtra("HTTP over a Unix socket", "pull")


def through_socket(socket: str) -> OpenAIAccess:
    """At a daemon's Unix socket, where the kernel says who asks: any key will do."""
    return OpenAIAccess("http://localhost/v1", "none", socket)


class Embedded:
    """The HTTP interface inside this process, started when it is first asked for."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._found: dict[bool, OpenAIAccess] = {}

    async def access(self, client: Any, *, tcp: bool) -> OpenAIAccess:
        """Where it serves. Raises ``MissingExtra``."""
        if tcp not in self._found:
            self._found[tcp] = await self._start(client, tcp)
        return self._found[tcp]

    async def aclose(self) -> None:
        """Stop serving."""
        self._found.clear()
        await self._stack.aclose()

    async def _start(self, client: Any, tcp: bool) -> OpenAIAccess:
        serving = _serving_for()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="overspill-")))
        socket, address, token = await self._stack.enter_async_context(
            serving(client, folder, tcp=tcp)
        )
        if tcp:
            return OpenAIAccess(f"http://{address}/v1", str(token))
        return through_socket(socket)


def _serving_for() -> Callable[..., Any]:
    """The daemon's package, where it is installed with what it needs."""
    try:
        for found in entry_points(group="overspill.daemon"):
            serving: Callable[..., Any] = found.load()
            return serving
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("overspill"):
            raise
    raise MissingExtra("The OpenAI interface", "edge")
