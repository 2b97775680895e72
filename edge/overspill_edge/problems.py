"""What goes wrong, as HTTP says it: the dialect's shape, a status, and nothing of the inside.

The shape is OpenAI's (``error.message``, ``type``, ``param``, ``code``), or Anthropic's where the
request is in that dialect. Our typed errors are written for users and are passed on; the text of
an engine's or of an unforeseen failure may hold a path or a prompt and is not.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overspill import errors
from overspill.types.chat import new_request_id

logger = logging.getLogger(__name__)

DEFAULT_RETRY_AFTER_S = 1.0
SOON_S = 60.0
"""What is busy for longer than this is not worth waiting for, as the official clients see it."""

CODE_HEADER = "X-Overspill-Code"
"""The error's stable code, also where a dialect's body has no place for it."""

PLAN_HEADER = "X-Overspill-Plan"
"""Beside ``consent_required``: which plan a person is to see."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Its other client errors are ``invalid_request_error``, the others ``api_error``: the words that
Anthropic's own types know."""


@dataclass(eq=False)
class HttpProblem(Exception):
    """A request that is answered with an error. ``extra`` joins the error object."""

    status: int
    code: str
    message: str
    mend: str = ""
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What is wrong and how to mend it."""
        return f"{self.message} {self.mend}".strip()

    def body(self) -> dict[str, Any]:
        """OpenAI's document: ``{"error": {...}}``."""
        return {
            "error": {
                "message": self.text,
                "type": _TYPES.get(self.status, "server_error"),
                "param": self.param,
                "code": self.code,
                **self.extra,
            }
        }

    def anthropic_body(self, request_id: str | None = None) -> dict[str, Any]:
        """Anthropic's document: ``{"type": "error", "error": {"type", "message"}}``."""
        client = "invalid_request_error" if self.status < 500 else "api_error"
        kind = _ANTHROPIC_TYPES.get(self.status, client)
        error = {"type": kind, "message": self.text}
        return {"type": "error", "error": error, "request_id": request_id}

    def response(self, *, anthropic: bool = False) -> JSONResponse:
        """The same as a response. ``x-should-retry`` keeps OpenAI's and Anthropic's clients from
        repeating what would fail again, a trust error above all; only a busy answer invites
        them."""
        busy = self.status == 503 or self.code == "rate_limit_exceeded"
        retry = {"x-should-retry": "true" if busy else "false"}
        headers = {CODE_HEADER: self.code, **retry, **self.headers}
        if not anthropic:
            return JSONResponse(self.body(), self.status, headers=headers)
        request_id = f"req_{new_request_id()}"
        headers["Request-Id"] = request_id
        return JSONResponse(self.anthropic_body(request_id), self.status, headers=headers)


def speaks_anthropic(scope: Scope) -> bool:
    """Whether a request is in Anthropic's dialect: by its path, or where both have that path by
    the header that Anthropic's clients always send."""
    path = str(scope.get("path", ""))
    if path.startswith("/v1/models"):
        return any(name == b"anthropic-version" for name, _ in scope.get("headers", ()))
    return path == "/v1/messages" or path.startswith("/v1/messages/")


_STATUS: tuple[tuple[type[errors.OverspillError], int], ...] = (
    (errors.InvalidRequest, 400),
    (errors.ContextOverflow, 400),
    (errors.ModelNotFound, 404),
    (errors.PolicyRefusal, 403),
    (errors.DeadlineExceeded, 504),
    (errors.BusyError, 503),
    (errors.TrustError, 502),
    (errors.TransportError, 502),
    (errors.Cancelled, 503),
)
"""The first that fits; what is not here is 500 with a message of ours."""

_INSIDE = "The daemon could not answer: %s. Its log has more."


def problem_of(error: BaseException) -> HttpProblem:
    """Any failure of a request as what its client is told. Never raises."""
    if isinstance(error, HttpProblem):
        return error
    if isinstance(error, HTTPException):
        return _problem_of_http(error)
    if isinstance(error, errors.OverspillError):
        return _problem_of_ours(error)
    return HttpProblem(500, "internal_error", _INSIDE % "something failed inside")


def _problem_of_ours(error: errors.OverspillError) -> HttpProblem:
    partial = {"partial": error.partial} if error.partial else {}
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), None)
    if status is None:
        return HttpProblem(500, error.code, _INSIDE % _summary(error), extra=partial)
    status, code = _quota(error) or (status, error.code)
    return HttpProblem(
        status,
        code,
        error.message,
        error.mend,
        param=_param(error),
        headers=_headers(error),
        extra={**_details(error), **partial},
    )


def is_spent(error: errors.OverspillError) -> bool:
    """Whether a quota was used up, and will not be there again soon."""
    if not isinstance(error, errors.BusyError) or error.reason != "QUOTA":
        return False
    return error.retry_after_s is None or error.retry_after_s > SOON_S


def _quota(error: errors.OverspillError) -> tuple[int, str] | None:
    """A cloud's quota in the dialects' words, by which clients choose between waiting and not."""
    if is_spent(error):
        return 429, "insufficient_quota"
    is_quota = isinstance(error, errors.BusyError) and error.reason == "QUOTA"
    return (429, "rate_limit_exceeded") if is_quota else None


def _problem_of_http(error: HTTPException) -> HttpProblem:
    known = {404: ("not_found", "There is nothing at this path."), 405: ("method_not_allowed", "")}
    code, message = known.get(error.status_code, ("http_error", ""))
    return HttpProblem(
        error.status_code, code, message or error.detail, headers=dict(error.headers or {})
    )


def _summary(error: errors.OverspillError) -> str:
    """The class's docstring is its one-line meaning; the instance's text may name files."""
    return (type(error).__doc__ or "an error").splitlines()[0].rstrip(".").lower()


def _param(error: errors.OverspillError) -> str | None:
    if isinstance(error, errors.InvalidRequest):
        return error.param
    if isinstance(error, errors.ContextOverflow):
        return "messages"
    return "model" if isinstance(error, errors.ModelNotFound) else None


def _details(error: errors.OverspillError) -> dict[str, Any]:
    if isinstance(error, errors.ConsentRequired):
        return {"plan_id": error.plan_id}
    if not isinstance(error, errors.ContextOverflow):
        return {}
    return {
        "prompt_tokens": error.prompt_tokens,
        "max_tokens": error.max_tokens,
        "context": error.context,
    }


def _headers(error: errors.OverspillError) -> dict[str, str]:
    if isinstance(error, errors.ConsentRequired):
        return {PLAN_HEADER: error.plan_id} if error.plan_id else {}
    if not isinstance(error, errors.BusyError) or isinstance(error, errors.DeadlineExceeded):
        return {}
    wait_s = DEFAULT_RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
    return {"Retry-After": str(max(1, math.ceil(wait_s)))}


def log_failure(error: BaseException, where: str) -> None:
    """Say what failed and where in the code; never the error's text, which may hold content."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    trail = " < ".join(f"{f.filename.rsplit('/', 1)[-1]}:{f.lineno} {f.name}" for f in frames[::-1])
    logger.error("%s failed: %s at %s", where, type(error).__name__, trail)


class ErrorBoundary:
    """The outermost app: every failure below becomes one JSON answer, or one log line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app below and answer for what it raised."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        # starlette's router raises its 404 and 405, rather than answering in plain text, when
        # the scope names an app.
        scope["app"] = self
        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            problem = problem_of(error)
            if problem.status == 500:
                log_failure(error, str(scope["method"]))
            if started:
                # Nothing can be added to a whole answer; without its end the server cuts it off.
                return
            response = problem.response(anthropic=speaks_anthropic(scope))
            await response(scope, receive, send)
