"""Tokens for other programs: a file of digests that the command line edits and the daemon reads.

A token is ``ovs_<id>_<secret>``, 256 random bits of secret; only its SHA-256 is stored (a slow
hash guards guessable passwords, and this is none). The file is replaced in one step under a lock
and its identity is looked at on each use, so a running daemon sees a change at once.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock

from overspill.config import Places
from overspill.errors import ConfigurationError, UsageError
from overspill_edge.listen import make_private_folder

TOKEN_PREFIX = "ovs_"  # noqa: S105  # a marker, not a secret
FILE_NAME = "tokens.json"
FORMAT_VERSION = 1
_LOCK_TIMEOUT_S = 10.0
_UNKNOWN_DIGEST = hashlib.sha256(b"").hexdigest()
_APP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TTL = re.compile(r"(\d{1,9})([smhdw])")
_TTL_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class Scope(StrEnum):
    """What a token may do."""

    INFER = "infer"
    MODELS = "models"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What is kept of a token. ``expires_unix`` None is never."""

    id: str
    sha256: str
    app: str
    scopes: tuple[Scope, ...]
    created_unix: int
    expires_unix: int | None

    def is_expired(self, now_unix: float) -> bool:
        """True from the second of expiry on."""
        return self.expires_unix is not None and now_unix >= self.expires_unix

    def as_dict(self) -> dict[str, Any]:
        """Id, app, scopes and expiry (RFC 3339, UTC): the public part."""
        return {
            "id": self.id,
            "app": self.app,
            "scopes": [scope.value for scope in self.scopes],
            "expires": None if self.expires_unix is None else _rfc3339(self.expires_unix),
        }


def parse_scopes(text: str) -> tuple[Scope, ...]:
    """``infer,models`` in the order of :class:`Scope`; ``UsageError`` names a wrong one."""
    asked = {part.strip() for part in text.split(",") if part.strip()}
    unknown = sorted(asked - {scope.value for scope in Scope})
    if unknown or not asked:
        raise UsageError(
            f"Unknown scope '{', '.join(unknown)}'." if unknown else "No scope given.",
            mend=f"Choose from: {', '.join(Scope)}.",
        )
    return tuple(scope for scope in Scope if scope.value in asked)


def parse_ttl_s(text: str) -> int:
    """``90s``, ``15m``, ``12h``, ``30d`` or ``2w`` in seconds, or ``UsageError``."""
    match = _TTL.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise UsageError(f"--ttl {text} is not a length of time.", mend="Say for example 30d.")
    return int(match[1]) * _TTL_SECONDS[match[2]]


class TokenStore:
    """The tokens in one file; see the module's docstring.

    All methods raise ``ConfigurationError`` where the file cannot be used: the door stays shut.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._seen: tuple[int, ...] | None = None
        self._records: Mapping[str, TokenRecord] = {}

    def issue(
        self, app: str, scopes: Iterable[Scope], ttl_s: int | None = None
    ) -> tuple[str, TokenRecord]:
        """A new token, shown this once, and what is kept of it."""
        if not _APP.fullmatch(app):
            raise UsageError(
                f"'{app[:80]}' cannot name an app.",
                mend="Use up to 64 letters, digits, dots, dashes and underscores.",
            )
        now = int(self._clock())
        token_id = secrets.token_hex(6)
        token = f"{TOKEN_PREFIX}{token_id}_{secrets.token_urlsafe(32)}"
        expires = None if ttl_s is None else now + ttl_s
        record = TokenRecord(token_id, _digest(token), app, tuple(scopes), now, expires)
        with self._locked():
            self._write([*self._read().values(), record])
        return token, record

    def revoke(self, token_id: str) -> TokenRecord:
        """Remove one; ``UsageError`` where there is none of that id."""
        with self._locked():
            records = dict(self._read())
            removed = records.pop(token_id, None)
            if removed is None:
                raise UsageError(
                    f"No token has the id '{token_id[:80]}'.", mend="Run: overspill token list"
                )
            self._write(records.values())
        return removed

    def records(self) -> tuple[TokenRecord, ...]:
        """All of them in the order they were issued, expired ones too."""
        return tuple(self._current().values())

    def verify(self, token: str) -> TokenRecord | None:
        """The record of a valid, unexpired token, else None; digests compared in constant time."""
        token_id = token.removeprefix(TOKEN_PREFIX).partition("_")[0]
        record = self._current().get(token_id)
        stored = _UNKNOWN_DIGEST if record is None else record.sha256
        matches = hmac.compare_digest(_digest(token), stored)
        if record is None or not matches or record.is_expired(self._clock()):
            return None
        return record

    def is_valid(self, token_id: str) -> bool:
        """Whether the token of this id is there and has not expired."""
        record = self._current().get(token_id)
        return record is not None and not record.is_expired(self._clock())

    def _current(self) -> Mapping[str, TokenRecord]:
        """The records, read again when the file is another one than last time."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            self._seen, self._records = None, {}
            return self._records
        seen = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
        if seen != self._seen:
            self._records = self._read()
            self._seen = seen
        return self._records

    def _locked(self) -> FileLock:
        make_private_folder(self.path.parent)
        return FileLock(f"{self.path}.lock", timeout=_LOCK_TIMEOUT_S, mode=0o600)

    def _read(self) -> dict[str, TokenRecord]:
        try:
            if os.name == "posix" and self.path.stat().st_mode & 0o022:
                raise ConfigurationError(
                    f"{self.path} can be written by other users.", mend=f"chmod 600 {self.path}"
                )
            document = json.loads(self.path.read_bytes())
            return {record.id: record for record in _records_of(document)}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{self.path} cannot be read as a token file ({type(error).__name__}).",
                mend="Mend it, or remove it and issue new tokens.",
            ) from None

    def _write(self, records: Iterable[TokenRecord]) -> None:
        stored = [
            {**record.as_dict(), "sha256": record.sha256, "created": _rfc3339(record.created_unix)}
            for record in records
        ]
        text = json.dumps({"version": FORMAT_VERSION, "tokens": stored}, indent=2) + "\n"
        _replace_file(self.path, text.encode())


def user_tokens(places: Places) -> TokenStore:
    """The user's tokens: the command line and the daemon open the same file."""
    return TokenStore(places.state / FILE_NAME)


def _replace_file(path: Path, data: bytes) -> None:
    """Write a 0600 file beside ``path`` and move it there: readers see the old or the new one."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _records_of(document: Any) -> list[TokenRecord]:
    if document["version"] != FORMAT_VERSION:
        raise ValueError("unknown version")
    return [
        TokenRecord(
            id=str(entry["id"]),
            sha256=bytes.fromhex(entry["sha256"]).hex(),
            app=str(entry["app"]),
            scopes=tuple(Scope(scope) for scope in entry["scopes"]),
            created_unix=_unix(entry["created"]),
            expires_unix=None if entry["expires"] is None else _unix(entry["expires"]),
        )
        for entry in document["tokens"]
    ]


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _rfc3339(unix: int) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _unix(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())
