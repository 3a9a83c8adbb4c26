"""What Alembic runs for every command. The connection is given; it is in a transaction that the giver commits."""

from __future__ import annotations

from alembic import context

from easel.database.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite changes a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
