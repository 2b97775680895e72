"""Runs migrations over the connection that the caller gives, in the caller's transaction."""

from __future__ import annotations

from alembic import context

from overspill_cloud.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # SQLite too: our transactions begin with BEGIN IMMEDIATE
)
with context.begin_transaction():
    context.run_migrations()
