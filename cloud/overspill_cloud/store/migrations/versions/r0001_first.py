"""Devices, enrolment codes, rotations, the replay window and the usage ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Schema 1."""
    op.create_table(
        "devices",
        sa.Column("thumbprint", sa.LargeBinary(32), primary_key=True),
        sa.Column("public_der", sa.LargeBinary, nullable=False),
        sa.Column("label", sa.String(64), nullable=False),
        sa.Column("enrolled_unix", sa.BigInteger, nullable=False),
        sa.Column("not_after_unix", sa.BigInteger, nullable=False),
        sa.Column("revoked_unix", sa.BigInteger),
    )
    op.create_table(
        "enrolment_codes",
        sa.Column("code_sha256", sa.LargeBinary(32), primary_key=True),
        sa.Column("expires_unix", sa.BigInteger, nullable=False),
        sa.Column("used_unix", sa.BigInteger),
    )
    op.create_table(
        "device_rotations",
        sa.Column("old_thumbprint", sa.LargeBinary(32), primary_key=True),
        sa.Column("new_thumbprint", sa.LargeBinary(32), nullable=False),
        sa.Column("rotated_unix", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "replay_window",
        sa.Column("thumbprint", sa.LargeBinary(32), primary_key=True),
        sa.Column("request_id", sa.LargeBinary(16), primary_key=True),
        sa.Column("seen_unix", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_replay_window_seen_unix", "replay_window", ["seen_unix"])
    op.create_table(
        "usage_ledger",
        sa.Column("request_id", sa.LargeBinary(16), primary_key=True),
        sa.Column("attempt", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("thumbprint", sa.LargeBinary(32), nullable=False),
        sa.Column("minute_unix", sa.BigInteger, nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        _guard_postgres()
    else:
        _guard_sqlite()


def _guard_sqlite() -> None:
    for verb in ("update", "delete"):
        op.execute(
            f"CREATE TRIGGER usage_ledger_no_{verb} BEFORE {verb} ON usage_ledger "
            "BEGIN SELECT RAISE(ABORT, 'the usage ledger is append-only'); END"
        )


def _guard_postgres() -> None:
    op.execute(
        "CREATE FUNCTION usage_ledger_is_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the usage ledger is append-only'; END $$"
    )
    for verb, events in (("update", "UPDATE"), ("delete", "DELETE OR TRUNCATE")):
        op.execute(
            f"CREATE TRIGGER usage_ledger_no_{verb} BEFORE {events} ON usage_ledger "
            "FOR EACH STATEMENT EXECUTE FUNCTION usage_ledger_is_append_only()"
        )
