"""What a node remembers: devices, enrolment codes, the replay window, and the usage ledger.

SQLite in WAL mode, through SQLAlchemy Core. Calls are synchronous and short; the node makes them
on one thread of its own, so the event loop never waits for a disk. No prompt, completion or
address has a column here.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import IntegrityError

from overspill.errors import ConfigurationError, DeviceRejected

SCHEMA_VERSION = 1
FILE_NAME = "node.sqlite3"

_metadata = sa.MetaData()

_devices = sa.Table(
    "devices",
    _metadata,
    sa.Column("thumbprint", sa.LargeBinary(32), primary_key=True),
    sa.Column("public_der", sa.LargeBinary, nullable=False),
    sa.Column("label", sa.String(64), nullable=False),
    sa.Column("enrolled_unix", sa.Integer, nullable=False),
    sa.Column("not_after_unix", sa.Integer, nullable=False),
    sa.Column("revoked_unix", sa.Integer),
)
_codes = sa.Table(
    "enrolment_codes",
    _metadata,
    sa.Column("code_sha256", sa.LargeBinary(32), primary_key=True),
    sa.Column("expires_unix", sa.Integer, nullable=False),
    sa.Column("used_unix", sa.Integer),
)
_rotations = sa.Table(
    "device_rotations",
    _metadata,
    sa.Column("old_thumbprint", sa.LargeBinary(32), primary_key=True),
    sa.Column("new_thumbprint", sa.LargeBinary(32), nullable=False),
    sa.Column("rotated_unix", sa.Integer, nullable=False),
)
_replay = sa.Table(
    "replay_window",
    _metadata,
    sa.Column("thumbprint", sa.LargeBinary(32), primary_key=True),
    sa.Column("request_id", sa.LargeBinary(16), primary_key=True),
    sa.Column("seen_unix", sa.Integer, nullable=False, index=True),
)
_ledger = sa.Table(
    "usage_ledger",
    _metadata,
    sa.Column("request_id", sa.LargeBinary(16), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("thumbprint", sa.LargeBinary(32), nullable=False),
    sa.Column("minute_unix", sa.Integer, nullable=False),
    sa.Column("model", sa.String(256), nullable=False),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("outcome", sa.String(32), nullable=False),
)
_APPEND_ONLY = tuple(
    f"CREATE TRIGGER IF NOT EXISTS usage_ledger_no_{verb} BEFORE {verb} ON usage_ledger "
    "BEGIN SELECT RAISE(ABORT, 'the usage ledger is append-only'); END"
    for verb in ("update", "delete")
)


@dataclass(frozen=True, slots=True)
class Device:
    """An enrolled device. Times are Unix seconds."""

    thumbprint: bytes
    public_der: bytes
    label: str
    enrolled_unix: int
    not_after_unix: int
    revoked_unix: int | None = None


@dataclass(frozen=True, slots=True)
class UsageEntry:
    """One line of the ledger: what one attempt of one request took."""

    request_id: bytes
    attempt: int
    thumbprint: bytes
    unix_s: int
    model: str
    prompt_tokens: int
    completion_tokens: int
    outcome: str


class Store:
    """One node's database in ``folder``, which is made private (0700, the file 0600).

    Raises ``ConfigurationError`` for a folder that cannot be used or a newer schema.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.touch(mode=0o600)
        except OSError as error:
            raise ConfigurationError(
                f"The state folder {folder} cannot be used: {error.strerror}.",
                mend="Give a folder of your own with --state.",
            ) from error
        self._engine = sa.create_engine(
            f"sqlite:///{self.path}", connect_args={"timeout": 5.0, "check_same_thread": False}
        )
        sa.event.listen(self._engine, "connect", _set_pragmas)
        self._create_schema()

    def _create_schema(self) -> None:
        with self._begin() as db:
            found = db.exec_driver_sql("PRAGMA user_version").scalar_one()
            if found > SCHEMA_VERSION:
                raise ConfigurationError(
                    f"{self.path} has schema {found}; this version knows {SCHEMA_VERSION}.",
                    mend="Upgrade overspill, or give another folder with --state.",
                )
            _metadata.create_all(db)
            for trigger in _APPEND_ONLY:
                db.exec_driver_sql(trigger)
            db.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as db:
                yield db
        except sa.exc.DatabaseError as error:
            if isinstance(error, IntegrityError):
                raise
            raise ConfigurationError(
                f"{self.path} cannot be used: {type(error.orig).__name__}.",
                mend="Check the disk, or give another folder with --state.",
            ) from error

    # Devices ----------------------------------------------------------------------------------

    def device(self, thumbprint: bytes) -> Device | None:
        """The enrolled device, revoked or expired ones too; None when it is unknown."""
        with self._begin() as db:
            row = db.execute(
                sa.select(_devices).where(_devices.c.thumbprint == thumbprint)
            ).one_or_none()
        return None if row is None else Device(**row._mapping)

    def devices(self) -> list[Device]:
        """All devices ever enrolled, in order of enrolment."""
        with self._begin() as db:
            rows = db.execute(sa.select(_devices).order_by(_devices.c.enrolled_unix)).all()
        return [Device(**row._mapping) for row in rows]

    def revoke(self, thumbprint: bytes, now_unix: int) -> bool:
        """Refuse a device from now on, for good, under the keys too that it rotated to: who stole
        a key may have. False when it is unknown."""
        with self._begin() as db:
            names = _with_successors(db, thumbprint)
            change = (
                sa.update(_devices)
                .where(_devices.c.thumbprint.in_(names))
                .values(revoked_unix=sa.func.coalesce(_devices.c.revoked_unix, now_unix))
            )
            return db.execute(change).rowcount > 0

    def rotate(
        self, old_thumbprint: bytes, device: Device, now_unix: int, overlap_until: int
    ) -> None:
        """Let a device go on under a new key; the old one holds until ``overlap_until`` at most.

        The same rotation again changes nothing. Raises ``DeviceRejected``: ``rotated`` when the old
        key has another successor already, ``revoked`` when the new key was revoked before.
        """
        row = {f: getattr(device, f) for f in Device.__slots__}
        add = upsert(_devices).values(row).on_conflict_do_nothing()
        note = upsert(_rotations).values(
            old_thumbprint=old_thumbprint, new_thumbprint=device.thumbprint, rotated_unix=now_unix
        )
        old = _devices.c.thumbprint == old_thumbprint
        with self._begin() as db:
            is_new = db.execute(note.on_conflict_do_nothing()).rowcount == 1
            if _successor(db, old_thumbprint) != device.thumbprint:
                raise DeviceRejected(
                    "This device key was replaced by another already.",
                    reason="rotated",
                    mend="Enrol this device again; if nobody here did that, have it revoked.",
                )
            db.execute(add)
            if self._is_revoked(db, device.thumbprint):
                raise DeviceRejected(
                    "The new device key was revoked.", reason="revoked", mend="Make another key."
                )
            if is_new:
                until = sa.func.min(_devices.c.not_after_unix, overlap_until)
                db.execute(sa.update(_devices).where(old).values(not_after_unix=until))

    def _is_revoked(self, db: sa.Connection, thumbprint: bytes) -> bool:
        found = sa.select(_devices.c.revoked_unix).where(_devices.c.thumbprint == thumbprint)
        return db.execute(found).scalar_one() is not None

    # Enrolment --------------------------------------------------------------------------------

    def new_code(self, expires_unix: int) -> str:
        """A one-time enrolment code (128 bits); only its digest is kept."""
        code = secrets.token_urlsafe(16)
        with self._begin() as db:
            db.execute(
                sa.insert(_codes).values(code_sha256=_digest(code), expires_unix=expires_unix)
            )
        return code

    def enrol(self, device: Device, code: str, now_unix: int) -> None:
        """Use a code up and add its device, both or neither.

        Raises ``DeviceRejected`` with reason ``code`` or ``revoked``.
        """
        use = (
            sa.update(_codes)
            .where(_codes.c.code_sha256 == _digest(code))
            .where(_codes.c.used_unix.is_(None))
            .where(_codes.c.expires_unix > now_unix)
            .values(used_unix=now_unix)
        )
        row = {f: getattr(device, f) for f in Device.__slots__}
        # A revoked key never comes back, whatever code it brings.
        add = upsert(_devices).values(row)
        add = add.on_conflict_do_update(
            index_elements=["thumbprint"],
            set_={"not_after_unix": device.not_after_unix, "label": device.label},
            where=_devices.c.revoked_unix.is_(None),
        )
        with self._begin() as db:
            if db.execute(use).rowcount != 1:
                raise DeviceRejected(
                    "The enrolment code is unknown, used up or expired.",
                    reason="code",
                    mend="Ask the node's operator for a new one: overspill-cloud enroll-code",
                )
            if db.execute(add).rowcount != 1:
                raise DeviceRejected(
                    "This device key was revoked.", reason="revoked", mend="Make a new device key."
                )

    # Replay window ----------------------------------------------------------------------------

    def record_request(
        self, thumbprint: bytes, request_id: bytes, now_unix: int, window_s: int
    ) -> bool:
        """Remember a request id for ``window_s`` seconds; False when it was seen before."""
        with self._begin() as db:
            db.execute(sa.delete(_replay).where(_replay.c.seen_unix < now_unix - window_s))
            seen = upsert(_replay).values(
                thumbprint=thumbprint, request_id=request_id, seen_unix=now_unix
            )
            return db.execute(seen.on_conflict_do_nothing()).rowcount == 1

    # Usage ------------------------------------------------------------------------------------

    def append_usage(self, entry: UsageEntry) -> None:
        """Add a line to the ledger; the same attempt twice is one line."""
        row = {
            "request_id": entry.request_id,
            "attempt": entry.attempt,
            "thumbprint": entry.thumbprint,
            "minute_unix": entry.unix_s // 60 * 60,
            "model": entry.model,
            "prompt_tokens": entry.prompt_tokens,
            "completion_tokens": entry.completion_tokens,
            "outcome": entry.outcome,
        }
        with self._begin() as db:
            db.execute(upsert(_ledger).values(row).on_conflict_do_nothing())

    def usage(self) -> list[dict[str, Any]]:
        """The whole ledger, oldest first."""
        with self._begin() as db:
            rows = db.execute(sa.select(_ledger).order_by(_ledger.c.minute_unix)).all()
        return [dict(row._mapping) for row in rows]

    def close(self) -> None:
        """Close every connection; the WAL is folded into the file."""
        self._engine.dispose()


def _set_pragmas(connection: Any, _record: Any) -> None:
    # NORMAL: a commit survives a killed process without an fsync of its own. After a power cut
    # the last ones may be gone, and with them the node's key: nothing old can be replayed then.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {pragma}")


def _successor(db: sa.Connection, thumbprint: bytes) -> bytes | None:
    wanted = sa.select(_rotations.c.new_thumbprint)
    found = db.execute(wanted.where(_rotations.c.old_thumbprint == thumbprint)).scalar_one_or_none()
    return None if found is None else bytes(found)


def _with_successors(db: sa.Connection, thumbprint: bytes) -> list[bytes]:
    """A device and every key that it rotated to since."""
    names = [thumbprint]
    while (following := _successor(db, names[-1])) is not None and following not in names:
        names.append(following)
    return names


def _digest(code: str) -> bytes:
    return hashlib.sha256(code.encode()).digest()
