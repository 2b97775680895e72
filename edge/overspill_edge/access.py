"""Who may come in: host, origin, token and scope, checked in this order on every bind.

A web page can make a browser send requests to a loopback port, or to a name that its owner lets
point there (DNS rebinding). So the Host must be one of ours on every bind, a request that a
browser marks as coming from another site is refused, and no answer allows every origin.
Credentials are headers: a token in a URL ends up in histories and logs and is refused as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from overspill_edge.peers import SCOPE_KEY, Peer
from overspill_edge.problems import HttpProblem
from overspill_edge.tokens import TOKEN_PREFIX, Scope, TokenStore

CALLER_KEY = "overspill.caller"
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_SECRET_PARAMETERS = frozenset(
    ("access_token", "api-key", "api_key", "apikey", "authorization", "bearer", "key", "token")
)
_PREFLIGHT_MAX_AGE_S = 600
EVERY_SCOPE = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """``hosts`` without port, ``origins`` exactly as a browser sends them."""

    hosts: tuple[str, ...] = LOOPBACK_HOSTS
    origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the app that the token names, else the peer's program."""

    app: str
    scopes: frozenset[Scope]
    token_id: str | None = None

    def require(self, scope: Scope) -> None:
        """Raise 403 unless this caller may do that."""
        if scope not in self.scopes:
            raise HttpProblem(
                403,
                "insufficient_scope",
                f"This token lacks the scope '{scope.value}'.",
                f"Issue one with: overspill token new --app {self.app} --scope {scope.value}",
            )


def caller_of(scope: AsgiScope) -> Caller:
    """The caller that :class:`AccessGuard` put into the scope."""
    caller: Caller = scope[CALLER_KEY]
    return caller


class AccessGuard:
    """Lets through what the policy allows, with a :class:`Caller` in the scope; else raises."""

    def __init__(self, app: ASGIApp, *, policy: AccessPolicy, tokens: TokenStore) -> None:
        self._app = app
        self._policy = policy
        self._tokens = tokens

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Check, answer a preflight, or go on."""
        headers = Headers(scope=scope)
        check_host(headers.getlist("host"), self._policy)
        origin = check_origin(headers, self._policy)
        check_query(scope.get("query_string", b""))
        if origin is not None:
            send = _with_cors(send, origin)
            if _is_preflight(scope, headers):
                await _preflight_answer()(scope, receive, send)
                return
        scope[CALLER_KEY] = identify(scope[SCOPE_KEY], headers, self._tokens)
        await self._app(scope, receive, send)


def check_host(values: Sequence[str], policy: AccessPolicy) -> None:
    """(1) Exactly one Host, and one of ours; any port, so that a forwarded port works."""
    name = _host_name(values[0]) if len(values) == 1 else ""
    if name not in policy.hosts:
        raise HttpProblem(
            403,
            "host_not_allowed",
            "The Host of this request is not one that this daemon serves.",
            f"Use {' or '.join(policy.hosts)}.",
        )


def _host_name(value: str) -> str:
    name, colon, port = value.lower().rpartition(":")
    return name if colon and (port.isdigit() or not port) else value.lower()


def check_origin(headers: Headers, policy: AccessPolicy) -> str | None:
    """(2) No Origin, or a listed one (returned); nothing that a browser calls another site's."""
    origins = headers.getlist("origin")
    if origins:
        if len(origins) != 1 or origins[0] not in policy.origins:
            raise HttpProblem(
                403,
                "origin_not_allowed",
                "Requests of this web origin are not allowed.",
                "Allow it with: overspill serve --origin ORIGIN",
            )
        return origins[0]
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise HttpProblem(403, "cross_site", "Requests from another site are not allowed.")
    return None


def check_query(query: bytes) -> None:
    """(3) No credential in the URL, under any usual name or by its own prefix."""
    if not query:
        return
    text = query.decode("latin-1")
    names = {name.lower() for name, _ in parse_qsl(text, keep_blank_values=True)}
    if TOKEN_PREFIX in text or names & _SECRET_PARAMETERS:
        raise HttpProblem(
            400,
            "token_in_query",
            "A credential in the URL is refused: URLs end up in logs.",
            "Send it as: Authorization: Bearer TOKEN. Revoke a token that was sent like this.",
        )


def identify(peer: Peer, headers: Headers, tokens: TokenStore) -> Caller:
    """(4) The caller by token; on the Unix socket, without one, by the kernel's word.

    Clients of both dialects always send some key. On the Unix socket one that is not ours is no
    credential and is passed over; one that looks like ours must be valid there too.
    """
    token = _credential(headers)
    if peer.transport == "unix" and (token is None or not token.startswith(TOKEN_PREFIX)):
        return Caller(peer.program, EVERY_SCOPE)
    record = None if token is None else tokens.verify(token)
    if record is None:
        raise HttpProblem(
            401,
            "invalid_api_key",
            "No valid token." if token else "This address needs a token.",
            "Issue one with: overspill token new --app NAME --scope infer,models",
            headers={"WWW-Authenticate": 'Bearer realm="overspill"'},
        )
    return Caller(record.app, frozenset(record.scopes), record.id)


def _credential(headers: Headers) -> str | None:
    """OpenAI's header or Anthropic's; of two, the one that looks like ours."""
    found = [token for token in (_bearer(headers), _api_key(headers)) if token is not None]
    ours = [token for token in found if token.startswith(TOKEN_PREFIX)]
    return next(iter((*ours, *found)), None)


def _bearer(headers: Headers) -> str | None:
    values = headers.getlist("authorization")
    if len(values) != 1:
        return None
    scheme, _, token = values[0].partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _api_key(headers: Headers) -> str | None:
    values = headers.getlist("x-api-key")
    return values[0].strip() or None if len(values) == 1 else None


def _is_preflight(scope: AsgiScope, headers: Headers) -> bool:
    return scope["method"] == "OPTIONS" and "access-control-request-method" in headers


def _preflight_answer() -> Response:
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Allow-Headers": "anthropic-beta, anthropic-version, authorization, "
            "content-type, prefer, x-api-key, x-overspill-privacy",
            "Access-Control-Max-Age": str(_PREFLIGHT_MAX_AGE_S),
        },
    )


def _with_cors(send: Send, origin: str) -> Send:
    """Name the one listed origin on the answer; never a wildcard, never credentials."""

    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = (
                "X-Overspill-Route, X-Overspill-Reason, X-Overspill-Receipt, X-Overspill-Code, "
                "X-Overspill-Plan, Request-Id, X-Request-Id, Retry-After"
            )
            headers.add_vary_header("Origin")
        await send(message)

    return named
