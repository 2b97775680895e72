"""The book of grants: signed when a person consents, checked and spent before a byte leaves.

A grant is the device's signature (see ``sealing.grant``) over one provider, one expiry, and 16
bytes that name the interaction: the beginning of SHA-256 over the request's id and all that a
model would see of it. Other words, another turn, another provider or a second use need another.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from overspill.errors import ConfigurationError, ConsentRequired, DeviceRejected
from overspill.sealing.grant import GrantClaims, check_grant, sign_grant
from overspill.sealing.signing import REQUEST_ID_BYTES, DeviceSigner
from overspill.types.chat import Request
from overspill.types.route import Grant

MAX_LIFETIME_S = 600
"""A grant is for now: one that would hold for longer is refused."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS spent (
    grant_sha256 BLOB PRIMARY KEY, expires_unix INTEGER NOT NULL, spent_unix INTEGER NOT NULL
) STRICT
"""


class GrantBook:
    """Grants of one device, in one SQLite file: digests of spent ones, and no word of a request.

    Methods raise ``ConfigurationError`` when the file cannot be used: then nothing is sent.
    """

    def __init__(self, path: Path, signer: DeviceSigner) -> None:
        self._path = path
        self._signer = signer

    def sign(self, grant: Grant, request: Request, now_unix: int) -> Grant:
        """The grant that a person's consent to ``request`` becomes.

        Raises ``ConsentRequired`` for one of another request, and one that ended or would hold
        for more than ten minutes.
        """
        _check_terms(grant, request, now_unix)
        claims = GrantClaims(grant.provider, interaction(request), grant.expires_unix)
        return replace(grant, signature=sign_grant(self._signer, claims))

    def spend(self, request: Request, provider: str, now_unix: int) -> None:
        """Check the request's grant, and take it: it is good for once, whatever follows.

        Raises ``ConsentRequired`` with its ``reason``: ``no_grant``, ``grant_request``,
        ``grant_provider``, ``grant_expired``, ``grant_lifetime``, ``grant_malformed``,
        ``signature`` or ``grant_spent``.
        """
        grant = request.grant
        # 1. Somebody consented to something.
        if grant is None or not grant.signature:
            raise refused("no_grant", "Nobody granted this one request")
        # 2. To this request, now.
        _check_terms(grant, request, now_unix)
        # 3. To these words and this provider, and this device signed it.
        try:
            check_grant(
                grant.signature,
                self._signer.public_der,
                provider=provider,
                request_id=interaction(request),
                now_unix=now_unix,
            )
        except DeviceRejected as error:
            raise refused(error.reason, error.message.partition(":")[0]) from error
        # 4. And it was not used before, here or in another process.
        self._take(grant, now_unix)

    def _take(self, grant: Grant, now_unix: int) -> None:
        digest = hashlib.sha256(grant.signature).digest()
        with self._connect() as db:
            # One that is over is refused by its expiry; a clock that was set back keeps it here.
            db.execute("DELETE FROM spent WHERE expires_unix < ?", (now_unix - 86_400,))
            taken = db.execute(
                "INSERT OR IGNORE INTO spent VALUES (?, ?, ?)",
                (digest, grant.expires_unix, now_unix),
            )
            if taken.rowcount != 1:
                raise refused("grant_spent", "This grant was used already")

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path.touch(mode=0o600, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=2)) as db, db:
                db.execute("PRAGMA synchronous = FULL")
                db.execute(_SCHEMA)
                yield db
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(
                f"The grants in {self._path} cannot be used: {error}.",
                mend="Make room, or move the file away.",
            ) from error


def interaction(request: Request) -> bytes:
    """16 bytes that name a request by its id and by all that a model would see of it."""
    seen = {
        "id": request.id,
        "messages": [_message(asdict(message)) for message in request.messages],
        "tools": [asdict(tool) for tool in request.tools],
        "tool_choice": [request.tool_choice, request.tool_name, request.parallel_tool_calls],
        "json_schema": request.json_schema,
        "grammar": asdict(request.grammar) if request.grammar else None,
        "stop": request.stop,
        "prefix": request.prefix,
        "raw": request.raw,
    }
    canonical = json.dumps(seen, sort_keys=True, separators=(",", ":"), default=dict)
    return hashlib.sha256(canonical.encode()).digest()[:REQUEST_ID_BYTES]


def _message(message: dict[str, Any]) -> dict[str, Any]:
    images = [
        [hashlib.sha256(image["data"]).hexdigest(), image["media_type"], image["at"]]
        for image in message["images"]
    ]
    return {**message, "images": images}


def _check_terms(grant: Grant, request: Request, now_unix: int) -> None:
    if grant.request_id != request.id:
        raise refused("grant_request", "The grant is for another request")
    if grant.expires_unix <= now_unix:
        raise refused("grant_expired", "The grant has expired")
    if grant.expires_unix > now_unix + MAX_LIFETIME_S:
        raise refused("grant_lifetime", f"A grant holds for {MAX_LIFETIME_S} s at most")


def refused(reason: str, what: str) -> ConsentRequired:
    """The refusal, with its stable reason."""
    error = ConsentRequired(
        f"{what}: nothing was sent to a third party.", mend="Ask for consent to this request."
    )
    error.reason = reason
    return error
