"""Tickets: what opens the gRPC socket to whoever the HTTP socket let in.

gRPC does not tell who is at the other end of a Unix socket; the HTTP socket does (see ``peers``).
So an app is greeted there, checked as any other request, and gets a ticket that says who it is.
Tickets live in this process only, and a new daemon greets everybody anew.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict

from overspill_edge.access import Caller
from overspill_edge.tokens import TokenStore

MAX_TICKETS = 4096


class Tickets:
    """Who holds which ticket. The one that was unused for longest is forgotten beyond the limit:
    its holder greets again."""

    def __init__(self, tokens: TokenStore) -> None:
        self._tokens = tokens
        self._holders: OrderedDict[bytes, Caller] = OrderedDict()

    def issue(self, caller: Caller) -> str:
        """A new ticket for ``caller``."""
        ticket = secrets.token_urlsafe(32)
        self._holders[_digest(ticket)] = caller
        while len(self._holders) > MAX_TICKETS:
            self._holders.popitem(last=False)
        return ticket

    def holder(self, ticket: str) -> Caller | None:
        """Who got it; None for one that is unknown, or whose token was revoked or ran out."""
        digest = _digest(ticket)
        caller = self._holders.get(digest)
        if caller is None:
            return None
        if caller.token_id is not None and not self._tokens.is_valid(caller.token_id):
            del self._holders[digest]
            return None
        self._holders.move_to_end(digest)
        return caller


def _digest(ticket: str) -> bytes:
    """Looked up by its digest, so that how long a lookup takes says nothing of the ticket."""
    return hashlib.sha256(ticket.encode()).digest()
