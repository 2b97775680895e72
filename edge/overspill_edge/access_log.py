"""One log line for each request: what was done for whom, never what was said.

No path, query, header value or body of a client goes into it: the route's own name stands for
the path.
"""

from __future__ import annotations

import logging
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overspill_edge.access import CALLER_KEY

logger = logging.getLogger(__name__)


class AccessLog:
    """Logs the route, status, milliseconds and app of each request, and where it was answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app below and log how it went; status 0 is a client that left before one."""
        status, route = 0, "-"
        started = time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status, route
            if message["type"] == "http.response.start":
                status = message["status"]
                route = Headers(raw=message["headers"]).get("x-overspill-route", "-")
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            logger.info(
                "%s status=%d ms=%d app=%r route=%s",
                type(scope["endpoint"]).__name__ if "endpoint" in scope else "-",
                status,
                (time.perf_counter() - started) * 1000,
                getattr(scope.get(CALLER_KEY), "app", "-"),
                route,
            )
