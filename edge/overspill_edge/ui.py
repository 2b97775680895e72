"""The status page's own small server: loopback, an ephemeral port, one browser at a time.

The daemon keeps to its Unix socket. This server, which lives as long as `overspill ui`, stands
between that and a browser: whoever has the single-use code (it travels in the URL's fragment, which
browsers keep to themselves) gets a cookie, and with the cookie this server asks the daemon in the
user's name. It passes on one document and two orders, and nothing else.
"""

from __future__ import annotations

import hmac
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx2
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CODE_LIFE_S = 120.0
DAEMON_TIMEOUT_S = 30.0
LOADING_TIMEOUT_S = 600.0
MAX_CODE_BYTES = 512
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_ORDERS = {"/unload": "/overspill/v1/models/unload", "/prewarm": "/overspill/v1/models/prewarm"}


@dataclass(slots=True)
class Session:
    """The one code, and the one cookie that it is good for. ``clock`` is in seconds."""

    clock: Callable[[], float] = time.monotonic
    code: str | None = field(default_factory=lambda: secrets.token_urlsafe(32))
    cookie: str | None = None
    _until: float = field(init=False)

    def __post_init__(self) -> None:
        self._until = self.clock() + CODE_LIFE_S

    def redeem(self, code: str) -> str | None:
        """The cookie for the code, once; None for one that is wrong, used or too old."""
        if self.code is None or self.clock() >= self._until:
            return None
        if not hmac.compare_digest(code.encode(), self.code.encode()):
            return None
        self.code, self.cookie = None, secrets.token_urlsafe(32)
        return self.cookie

    def knows(self, cookie: str | None) -> bool:
        """Whether a browser's cookie is that one."""
        if cookie is None or self.cookie is None:
            return False
        return hmac.compare_digest(cookie.encode(), self.cookie.encode())


class OwnOriginOnly:
    """Refuses other names of this address and other sites' requests, and hardens every answer."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then go on."""

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        why = self._refusal(Headers(scope=scope), scope["method"])
        app: ASGIApp = self._app if why is None else JSONResponse({"error": why}, 403)
        await app(scope, receive, hardened)

    def _refusal(self, headers: Headers, method: str) -> str | None:
        if headers.getlist("host") != [self._host]:
            return "This Host is not the page's own."
        origins = headers.getlist("origin")
        if origins not in ([], [f"http://{self._host}"]) or (method == "POST" and not origins):
            return "Requests of another origin are refused."
        site = headers.get("sec-fetch-site", "none")
        return None if site in ("none", "same-origin") else "Requests of another site are refused."


class StatusPage:
    """The routes: four files for everybody, the code for a cookie, the rest for its holder."""

    def __init__(self, socket: Path, port: int, session: Session) -> None:
        self._socket = socket
        self._cookie = f"overspill_ui_{port}"  # cookies do not know ports: two pages, two names
        self._session = session
        pages = files("overspill_edge").joinpath("page")
        self._files = {at: pages.joinpath(name).read_bytes() for at, (name, _) in _FILES.items()}
        self.app: ASGIApp = OwnOriginOnly(self._routes(), f"127.0.0.1:{port}")

    def _routes(self) -> Router:
        orders = [Route(path, self._order, methods=["POST"]) for path in _ORDERS]
        return Router(
            [
                *(Route(path, self._file, methods=["GET"]) for path in _FILES),
                Route("/session", self._sign_in, methods=["POST"]),
                Route("/overview", self._overview, methods=["GET"]),
                *orders,
            ],
            redirect_slashes=False,
        )

    async def _file(self, request: Request) -> Response:
        path = request.url.path
        return Response(self._files[path], media_type=_FILES[path][1])

    async def _sign_in(self, request: Request) -> Response:
        cookie = self._session.redeem(await _code(request))
        if cookie is None:
            return JSONResponse(
                {"error": "The code was used, or is too old. Run: overspill ui"}, 403
            )
        answer = Response(status_code=204)
        answer.set_cookie(self._cookie, cookie, httponly=True, samesite="strict", path="/")
        return answer

    async def _overview(self, request: Request) -> Response:
        return await self._for_holder(
            request, lambda http: http.get("/overspill/v1/overview", timeout=DAEMON_TIMEOUT_S)
        )

    async def _order(self, request: Request) -> Response:
        path = _ORDERS[request.url.path]
        return await self._for_holder(
            request, lambda http: http.post(path, json={}, timeout=LOADING_TIMEOUT_S)
        )

    async def _for_holder(
        self,
        request: Request,
        ask: Callable[[httpx2.AsyncClient], Awaitable[httpx2.Response]],
    ) -> Response:
        if not self._session.knows(request.cookies.get(self._cookie)):
            return JSONResponse({"error": "Not signed in."}, 401)
        transport = httpx2.AsyncHTTPTransport(uds=str(self._socket))
        try:
            async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
                answer = await ask(http)
        except httpx2.HTTPError:
            return JSONResponse({"error": "The daemon does not answer. Run: overspill serve"}, 502)
        if answer.status_code == 200:
            return Response(answer.content, media_type="application/json")
        return JSONResponse({"error": _message(answer)}, answer.status_code)


async def _code(request: Request) -> str:
    """The code in a small JSON body; empty for anything else."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_CODE_BYTES:
            return ""
    try:
        code = json.loads(body)["code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return code if isinstance(code, str) and code.isascii() else ""


def _message(answer: httpx2.Response) -> str:
    try:
        document: Any = answer.json()
        error: Mapping[str, Any] = document["error"]
        return str(error["message"])
    except (ValueError, KeyError, TypeError):
        return f"The daemon answered with status {answer.status_code}."
