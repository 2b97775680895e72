"""``upstream:http://127.0.0.1:8000#model`` and ``upstream:unix:/run/engine.sock#model``."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from overspill.errors import ConfigurationError, UsageError

SCHEME: Final = "upstream:"
_UNIX: Final = "unix:"
_HOST_OF_A_SOCKET: Final = "http://upstream"
"""Goes into the Host header alone: what is connected to is the socket."""


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    """``base_url`` without ``/v1``; ``uds`` is a Unix socket's path; ``model`` its name there."""

    base_url: str
    model: str
    uds: str | None = None

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"unix:{self.uds}" if self.uds else self.base_url


def is_upstream(source: str) -> bool:
    """Whether a model's source names an upstream."""
    return source.startswith(SCHEME)


def parse_upstream(source: str) -> UpstreamAddress:
    """The address in a model's source.

    Raises ``UsageError`` for another form, ``ConfigurationError`` for anything that is not on this
    machine: a prompt that was opened here must not go over a network in clear.
    """
    where, sign, model = source.removeprefix(SCHEME).partition("#")
    if not sign or not model or not where:
        raise UsageError(
            f"'{source}' is no upstream.",
            mend="Give NAME=upstream:http://127.0.0.1:PORT#MODEL or upstream:unix:/path#MODEL.",
        )
    if where.startswith(_UNIX):
        path = where.removeprefix(_UNIX)
        if not path.startswith("/"):
            raise UsageError(
                f"'{path}' is no absolute path.", mend="Give upstream:unix:/path#MODEL."
            )
        return UpstreamAddress(_HOST_OF_A_SOCKET, model, path)
    return UpstreamAddress(_loopback_url(where), model)


def _loopback_url(where: str) -> str:
    url = urlsplit(where)
    try:
        port = url.port
    except ValueError:
        port = None
    plain = url.path in ("", "/", "/v1", "/v1/") and not url.query and "@" not in url.netloc
    if url.scheme != "http" or port is None or not plain:
        raise UsageError(
            f"'{where}' is no upstream's address.",
            mend="Give http://127.0.0.1:PORT, or unix:/path.",
        )
    if not _is_loopback_literal(url.hostname or ""):
        raise ConfigurationError(
            f"The upstream {where} is not on this machine.",
            mend="Run it beside the node, and give 127.0.0.1, [::1] or a Unix socket.",
        )
    return f"http://{url.netloc}"


def _is_loopback_literal(host: str) -> bool:
    # No name, not even localhost: what it stands for is somebody else's file.
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
