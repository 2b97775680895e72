"""Devices: enrolled by a one-time code, rotated to a new key, revoked for good."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import asdict, fields
from typing import Any

import sqlalchemy as sa

from overspill.errors import DeviceRejected
from overspill_cloud.store.backend import DriverStatement, Part
from overspill_cloud.store.records import Device
from overspill_cloud.store.tables import codes, devices, rotations

_ONE = sa.select(devices).where(devices.c.thumbprint == sa.bindparam("wanted"))
"""Built once: building a statement takes longer than running it."""
_ONE_IN_A_FILE = DriverStatement(
    sa.select(*(devices.c[part.name] for part in fields(Device))).where(
        devices.c.thumbprint == sa.bindparam("wanted")
    )
)


class Devices(Part):
    """Who may ask. Every replica that shares the database sees a change at once."""

    def device(self, thumbprint: bytes) -> Device | None:
        """The enrolled device, revoked or expired ones too; None when it is unknown."""
        if not self._backend.is_postgres:
            with self._backend.driver() as file:
                found = _ONE_IN_A_FILE.run(file, {"wanted": thumbprint})
            return Device(*found[0]) if found else None
        with self._backend.look() as db:
            row = db.execute(_ONE, {"wanted": thumbprint}).one_or_none()
        return None if row is None else Device(**row._mapping)

    def devices(self) -> list[Device]:
        """All devices ever enrolled, in order of enrolment."""
        order = (devices.c.enrolled_unix, devices.c.thumbprint)
        with self._backend.read() as db:
            rows = db.execute(sa.select(devices).order_by(*order)).all()
        return [Device(**row._mapping) for row in rows]

    def revoke(self, thumbprint: bytes, now_unix: int) -> bool:
        """Refuse a device from now on, for good, under the keys too that it rotated to: who stole
        a key may have. False when it is unknown."""
        with self._backend.write() as db:
            names = _with_successors(db, thumbprint)
            change = (
                sa.update(devices)
                .where(devices.c.thumbprint.in_(names))
                .values(revoked_unix=sa.func.coalesce(devices.c.revoked_unix, now_unix))
            )
            return db.execute(change).rowcount > 0

    def set_quota(self, thumbprint: bytes, tokens: int | None) -> bool:
        """Give a device a quota of its own, tokens a period; None for the node's default. False
        when it is unknown."""
        change = sa.update(devices).where(devices.c.thumbprint == thumbprint)
        with self._backend.write() as db:
            return db.execute(change.values(quota_tokens=tokens)).rowcount > 0

    def rotate(
        self, old_thumbprint: bytes, device: Device, now_unix: int, overlap_until: int
    ) -> None:
        """Let a device go on under a new key; the old one holds until ``overlap_until`` at most.
        The new key spends the quota of the old one.

        The same rotation again changes nothing. Raises ``DeviceRejected``: ``rotated`` when the old
        key has another successor already, ``revoked`` when either key was revoked before.
        """
        note = self._backend.insert(rotations).values(
            old_thumbprint=old_thumbprint, new_thumbprint=device.thumbprint, rotated_unix=now_unix
        )
        with self._backend.write() as db:
            old = _locked(db, old_thumbprint)
            if old is not None and old.revoked_unix is not None:
                raise DeviceRejected(
                    "This device was revoked.", reason="revoked", mend="Make and enrol a new key."
                )
            noted = note.on_conflict_do_nothing().returning(rotations.c.rotated_unix)
            is_new = db.execute(noted).one_or_none() is not None
            if _successor(db, old_thumbprint) != device.thumbprint:
                raise DeviceRejected(
                    "This device key was replaced by another already.",
                    reason="rotated",
                    mend="Enrol this device again; if nobody here did that, have it revoked.",
                )
            row = asdict(device)
            if old is not None:
                row |= {"quota_tokens": old.quota_tokens, "quota_account": old.account}
            db.execute(self._backend.insert(devices).values(row).on_conflict_do_nothing())
            if self._is_revoked(db, device.thumbprint):
                raise DeviceRejected(
                    "The new device key was revoked.", reason="revoked", mend="Make another key."
                )
            if is_new:
                _end_by(db, old_thumbprint, overlap_until)

    def _is_revoked(self, db: sa.Connection, thumbprint: bytes) -> bool:
        found = sa.select(devices.c.revoked_unix).where(devices.c.thumbprint == thumbprint)
        return db.execute(found).scalar_one() is not None

    # Enrolment --------------------------------------------------------------------------------

    def new_code(self, expires_unix: int) -> str:
        """A one-time enrolment code (128 bits); only its digest is kept."""
        code = secrets.token_urlsafe(16)
        with self._backend.write() as db:
            db.execute(
                sa.insert(codes).values(code_sha256=_digest(code), expires_unix=expires_unix)
            )
        return code

    def enrol(self, device: Device, code: str, now_unix: int) -> None:
        """Use a code up and add its device, both or neither.

        Raises ``DeviceRejected`` with reason ``code`` or ``revoked``.
        """
        use = (
            sa.update(codes)
            .where(codes.c.code_sha256 == _digest(code))
            .where(codes.c.used_unix.is_(None))
            .where(codes.c.expires_unix > now_unix)
            .values(used_unix=now_unix)
        )
        # A revoked key never comes back, whatever code it brings.
        add = self._backend.insert(devices).values(asdict(device))
        add = add.on_conflict_do_update(
            index_elements=["thumbprint"],
            set_={"not_after_unix": device.not_after_unix, "label": device.label},
            where=devices.c.revoked_unix.is_(None),
        )
        with self._backend.write() as db:
            if db.execute(use).rowcount != 1:
                raise DeviceRejected(
                    "The enrolment code is unknown, used up or expired.",
                    reason="code",
                    mend="Ask the node's operator for a new one: overspill-cloud enroll-code",
                )
            if db.execute(add.returning(devices.c.thumbprint)).one_or_none() is None:
                raise DeviceRejected(
                    "This device key was revoked.", reason="revoked", mend="Make a new device key."
                )


def _locked(db: sa.Connection, thumbprint: bytes) -> Device | None:
    """A device whose row nobody else changes before this transaction ends: a rotation that runs
    beside a revocation comes before it, and is revoked with it, or after it, and is refused."""
    wanted = sa.select(devices).where(devices.c.thumbprint == thumbprint).with_for_update()
    row = db.execute(wanted).one_or_none()
    return None if row is None else Device(**row._mapping)


def _end_by(db: sa.Connection, thumbprint: bytes, unix_s: int) -> None:
    end: Any = devices.c.not_after_unix
    until = sa.case((end < unix_s, end), else_=unix_s)
    change = sa.update(devices).where(devices.c.thumbprint == thumbprint)
    db.execute(change.values(not_after_unix=until))


def _successor(db: sa.Connection, thumbprint: bytes) -> bytes | None:
    wanted = sa.select(rotations.c.new_thumbprint)
    found = db.execute(wanted.where(rotations.c.old_thumbprint == thumbprint)).scalar_one_or_none()
    return None if found is None else bytes(found)


def _with_successors(db: sa.Connection, thumbprint: bytes) -> list[bytes]:
    """A device and every key that it rotated to since; each is locked before the next is read."""
    names = [thumbprint]
    _locked(db, thumbprint)
    while (following := _successor(db, names[-1])) is not None and following not in names:
        names.append(following)
        _locked(db, following)
    return names


def _digest(code: str) -> bytes:
    return hashlib.sha256(code.encode()).digest()
