"""Bringing a database's tables to this version's form, with Alembic, without any file that users would have to write."""

from __future__ import annotations

import io
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from easel.database.tables import metadata
from easel.errors import ConfigurationError, DatabaseTooNew

FOLDER = Path(__file__).parent / "migrations"


def configuration() -> Config:
    """Return Alembic's configuration; ``attributes["connection"]`` takes the connection to work on."""
    config = Config(stdout=io.StringIO())
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def migrate(connection: sa.Connection, name: str) -> bool:
    """Run the migrations that the database lacks; tells whether there were any. ``name`` stands for it in messages.

    The caller gives a connection in a transaction of its own that keeps other processes out, and commits it. Raises
    DatabaseTooNew when a newer version has been here, ConfigurationError when the tables are not Easel's.
    """
    config = configuration()
    script = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_heads()
    if unknown := set(current) - {revision.revision for revision in script.walk_revisions()}:
        raise DatabaseTooNew(
            f"the database {name} was written by a newer version of Easel (its revision is "
            f"{', '.join(sorted(unknown))}, this version knows up to {script.get_current_head()})",
            hint="install that version again, or start with another database",
        )
    if set(current) == set(script.get_heads()):
        return False
    if not current and (
        taken := set(sa.inspect(connection).get_table_names()) & set(metadata.tables)
    ):
        raise ConfigurationError(
            f"the database {name} has tables of these names that are not Easel's: {', '.join(sorted(taken))}",
            hint="give Easel a database of its own",
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return True
