"""The tables, as the newest migration leaves them (a test compares the two)."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

devices = sa.Table(
    "devices",
    metadata,
    sa.Column("thumbprint", sa.LargeBinary(32), primary_key=True),
    sa.Column("public_der", sa.LargeBinary, nullable=False),
    sa.Column("label", sa.String(64), nullable=False),
    sa.Column("enrolled_unix", sa.BigInteger, nullable=False),
    sa.Column("not_after_unix", sa.BigInteger, nullable=False),
    sa.Column("revoked_unix", sa.BigInteger),
    sa.Column("quota_tokens", sa.BigInteger),
    sa.Column("quota_account", sa.LargeBinary(32)),
)
codes = sa.Table(
    "enrolment_codes",
    metadata,
    sa.Column("code_sha256", sa.LargeBinary(32), primary_key=True),
    sa.Column("expires_unix", sa.BigInteger, nullable=False),
    sa.Column("used_unix", sa.BigInteger),
)
rotations = sa.Table(
    "device_rotations",
    metadata,
    sa.Column("old_thumbprint", sa.LargeBinary(32), primary_key=True),
    sa.Column("new_thumbprint", sa.LargeBinary(32), nullable=False),
    sa.Column("rotated_unix", sa.BigInteger, nullable=False),
)
replay = sa.Table(
    "replay_window",
    metadata,
    sa.Column("thumbprint", sa.LargeBinary(32), primary_key=True),
    sa.Column("request_id", sa.LargeBinary(16), primary_key=True),
    sa.Column("seen_unix", sa.BigInteger, nullable=False, index=True),
)
ledger = sa.Table(
    "usage_ledger",
    metadata,
    sa.Column("request_id", sa.LargeBinary(16), primary_key=True),
    sa.Column("attempt", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("thumbprint", sa.LargeBinary(32), nullable=False),
    sa.Column("minute_unix", sa.BigInteger, nullable=False),
    sa.Column("model", sa.String(256), nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("outcome", sa.String(32), nullable=False),
    # 0 for lines from before there were quotas.
    sa.Column("period_unix", sa.BigInteger, nullable=False, server_default="0"),
)
quota_usage = sa.Table(
    "quota_usage",
    metadata,
    sa.Column("account", sa.LargeBinary(32), primary_key=True),
    sa.Column("period_unix", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("spent_tokens", sa.BigInteger, nullable=False),
)
quota_leases = sa.Table(
    "quota_leases",
    metadata,
    sa.Column("lease_id", sa.LargeBinary(16), primary_key=True),
    sa.Column("account", sa.LargeBinary(32), nullable=False),
    sa.Column("period_unix", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("expires_unix", sa.BigInteger, nullable=False, index=True),
    sa.Index("ix_quota_leases_account", "account", "period_unix"),
)

APPEND_ONLY = ("usage_ledger_no_update", "usage_ledger_no_delete")
"""The triggers that keep the ledger append-only."""
