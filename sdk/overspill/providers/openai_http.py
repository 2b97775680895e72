"""HTTP to whoever speaks OpenAI's protocol: one request, the lines of its streamed answer.

Redirects are not followed, nothing is tried twice, and a refusal is typed by its status alone:
what the other side writes beside it may quote the prompt.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING

from overspill.errors import (
    BusyError,
    ConfigurationError,
    ConnectFailed,
    EngineError,
    InvalidRequest,
    MissingExtra,
    ModelNotFound,
    OverspillError,
    StreamBroken,
)

if TYPE_CHECKING:
    import httpx2


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and as whom: ``name`` is what errors call it, ``uds`` a Unix socket's path that is
    connected to in place of the host in ``base_url``. ``feature`` and ``extra`` say what to install
    where httpx2 is missing."""

    name: str
    base_url: str
    model: str
    api_key: str = field(default="", repr=False)
    uds: str | None = None
    connect_timeout_s: float = 10.0
    silence_timeout_s: float = 60.0
    feature: str = "A third party's API"
    extra: str = "providers"


def is_loopback(host: str | None) -> bool:
    """Whether a URL's host is this machine by its very form: no name is resolved."""
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


def open_client(endpoint: Endpoint) -> httpx2.AsyncClient:
    """A client for the endpoint; no proxy stands between it and a Unix socket or loopback.

    Raises ``MissingExtra``.
    """
    try:
        import httpx2
    except ImportError:
        raise MissingExtra(endpoint.feature, endpoint.extra) from None
    timeout = httpx2.Timeout(endpoint.silence_timeout_s, connect=endpoint.connect_timeout_s)
    if endpoint.uds is not None:
        transport = httpx2.AsyncHTTPTransport(uds=endpoint.uds, verify=False)  # no TLS there
        return httpx2.AsyncClient(transport=transport, timeout=timeout, trust_env=False)
    near = is_loopback(httpx2.URL(endpoint.base_url).host)
    return httpx2.AsyncClient(timeout=timeout, follow_redirects=False, trust_env=not near)


@asynccontextmanager
async def answer_lines(
    client: httpx2.AsyncClient, endpoint: Endpoint, path: str, body: bytes
) -> AsyncIterator[AsyncIterator[str]]:
    """The lines of the answer to ``body``, once it is one; leaving early closes the connection.

    Raises ``ConnectFailed``, ``StreamBroken``, or the refusal as its status says.
    """
    import httpx2

    url = f"{endpoint.base_url.rstrip('/')}{path}"
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    if endpoint.api_key:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    try:
        async with client.stream("POST", url, content=body, headers=headers) as response:
            if response.status_code != 200:
                raise refusal(endpoint, response.status_code, _retry_after_s(response))
            yield response.aiter_lines()
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        raise ConnectFailed(f"{endpoint.name} cannot be reached.", mend="Go online.") from error
    except httpx2.TransportError as error:
        kind = type(error).__name__
        raise StreamBroken(f"{endpoint.name} was lost ({kind}).", mend="Try again.") from error


def refusal(endpoint: Endpoint, status: int, retry_after_s: float | None = None) -> OverspillError:
    """The typed error of an HTTP status that is not 200."""
    name = endpoint.name
    if status in (401, 403):
        return ConfigurationError(f"{name} refused its key ({status}).", mend="Set a good one.")
    if status == 404:
        return ModelNotFound(
            f"{name} has no model '{endpoint.model}'.", mend="Name one that it serves."
        )
    if status in (429, 503):
        return BusyError(f"{name} is busy ({status}).", retry_after_s=retry_after_s)
    if 400 <= status < 500:
        return InvalidRequest(f"{name} refused the request ({status}).")
    return EngineError(f"{name} failed ({status}).", mend="Try again later.")


def _retry_after_s(response: httpx2.Response) -> float | None:
    try:
        return max(0.0, float(response.headers.get("Retry-After", "")))
    except ValueError:  # absent, or a date: then it is for the caller to choose
        return None
