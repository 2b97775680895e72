"""The daemon's side of :mod:`overspill.transport.loopback`: the file, and what is in it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from overspill.config import Places
from overspill.transport.loopback import FILE_NAME, Loopback
from overspill_edge.listen import TcpAddress, make_private_folder
from overspill_edge.tokens import Scope, TokenStore

APP_NAME = "this-user"
"""Whose token the file has. Any program of this user may read it, and names itself."""


@contextmanager
def offered(places: Places, tokens: TokenStore, address: TcpAddress) -> Iterator[Loopback]:
    """Let this user's apps find the daemon at ``address`` while the block runs.

    The token of a daemon that died is revoked first. Raises ``ConfigurationError`` for a runtime
    folder that is not private.
    """
    make_private_folder(places.runtime)
    for record in tokens.records():
        if record.app == APP_NAME:
            tokens.revoke(record.id)
    token, record = tokens.issue(APP_NAME, tuple(Scope))
    found = Loopback(str(address), token, key=secrets.token_urlsafe(32))
    file = places.runtime / FILE_NAME
    found.write(file)
    try:
        yield found
    finally:
        file.unlink(missing_ok=True)
        tokens.revoke(record.id)
