"""``POST /overspill/v1/local``: an app is greeted, and told where the gRPC socket is.

See :mod:`overspill.transport.handshake` for what is said.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from overspill.errors import InvalidRequest, VersionMismatch
from overspill.transport.handshake import PATH, Hello, Side, Welcome, check_versions
from overspill.transport.loopback import Loopback
from overspill.wire.told import from_json, to_json
from overspill_edge.access import Caller, caller_of
from overspill_edge.loopback import APP_NAME as THIS_USER
from overspill_edge.problems import HttpProblem
from overspill_edge.tickets import Tickets
from overspill_edge.tokens import Scope
from overspill_edge.work import HttpLimits, read_body

MAX_APP_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class LocalService:
    """Where the gRPC socket is, who may use it, and what answers there."""

    socket: str
    tickets: Tickets
    model: str
    work: str
    loopback: Loopback | None = None
    """Where the socket is an address on loopback: what apps find it by, and this daemon's key."""


class Handshake:
    """Answers the handshake, and hands everything else on."""

    def __init__(self, app: ASGIApp, service: LocalService | None) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Greet, or go on."""
        asked = (scope["method"], scope["path"]) == ("POST", PATH)
        if self._service is None or not asked:
            await self._app(scope, receive, send)
            return
        scope["endpoint"] = self  # for the log: no route was asked
        caller = caller_of(scope)
        caller.require(Scope.INFER)
        body = await read_body(scope, receive, HttpLimits(max_body_bytes=4096))
        answer = to_json(
            welcome(from_json(Hello, body.decode("utf-8", "replace")), caller, self._service)
        )
        await Response(answer, media_type="application/json")(scope, receive, send)


def welcome(hello: Hello, caller: Caller, service: LocalService) -> Welcome:
    """What the daemon answers; a token names its app, but for the user's own on loopback, and
    else the app names itself.

    Raises ``HttpProblem`` 409 ``version_mismatch``, which says which side to upgrade.
    """
    try:
        check_versions(hello.side, Side())
    except VersionMismatch as error:
        raise HttpProblem(409, error.code, error.message, error.mend) from error
    if not 0 < len(hello.app) <= MAX_APP_CHARACTERS or not hello.app.isprintable():
        raise InvalidRequest(
            "The app's name is no name.", param="app", mend="Use up to 64 printable characters."
        )
    names_itself = caller.token_id is None or caller.app == THIS_USER
    known = replace(caller, app=hello.app) if names_itself else caller
    ticket, loopback = service.tickets.issue(known), service.loopback
    return Welcome(
        socket=service.socket,
        ticket=ticket,
        app=known.app,
        model=service.model,
        work=service.work,
        proof="" if loopback is None else loopback.proof(hello.nonce, service.socket, ticket),
    )
