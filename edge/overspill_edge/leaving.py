"""A daemon that handed over still answers who is connected, and asks everybody to connect anew."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Leaving:
    """With ``is_leaving`` every answer is its connection's last (RFC 9112, 9.6)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.is_leaving = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the app below does."""

        async def last(message: Message) -> None:
            if self.is_leaving and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, last)
