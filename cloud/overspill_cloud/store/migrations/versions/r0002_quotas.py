"""Quotas: what is spent of them, and the leases on them; whose quota a device's key spends."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Columns with constant defaults and new tables: no row is rewritten, no writer waits long."""
    op.add_column("devices", sa.Column("quota_tokens", sa.BigInteger))
    op.add_column("devices", sa.Column("quota_account", sa.LargeBinary(32)))
    op.add_column(
        "usage_ledger",
        sa.Column("period_unix", sa.BigInteger, nullable=False, server_default="0"),
    )
    op.create_table(
        "quota_usage",
        sa.Column("account", sa.LargeBinary(32), primary_key=True),
        sa.Column("period_unix", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("spent_tokens", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "quota_leases",
        sa.Column("lease_id", sa.LargeBinary(16), primary_key=True),
        sa.Column("account", sa.LargeBinary(32), nullable=False),
        sa.Column("period_unix", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("expires_unix", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_quota_leases_expires_unix", "quota_leases", ["expires_unix"])
    op.create_index("ix_quota_leases_account", "quota_leases", ["account", "period_unix"])
    _follow_rotations()


def _follow_rotations() -> None:
    """A key that another one rotated to spends the quota of the first of them."""
    db = op.get_bind()
    found = db.execute(sa.text("SELECT new_thumbprint, old_thumbprint FROM device_rotations"))
    before = {bytes(row[0]): bytes(row[1]) for row in found}
    for key in before:
        first, passed = key, {key}
        while first in before and before[first] not in passed:
            first = before[first]
            passed.add(first)
        db.execute(
            sa.text("UPDATE devices SET quota_account = :first WHERE thumbprint = :key"),
            {"first": first, "key": key},
        )
