"""Which database a URL means."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from easel.database.port import Database
from easel.errors import ConfigurationError

FILE_NAME = "easel.db"

_HINT = (
    "write it as postgresql://user:password@host/database (special characters of the password as %XX), "
    "or sqlite:///folder/easel.db"
)


def open_database(url: str | None, home: Path) -> Database:
    """Return the database that the settings name; its `open` connects. None: ``easel.db`` in the platform's folder.

    Touches no file. Raises ConfigurationError for a URL that cannot be used.
    """
    if url is None:
        return _sqlite(sa.URL.create("sqlite", database=str(home / FILE_NAME)))
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError) as error:
        raise ConfigurationError("the database's URL cannot be read", hint=_HINT) from error
    kind = parsed.drivername.partition("+")[0]
    if kind == "sqlite":
        return _sqlite(parsed)
    if kind in {"postgresql", "postgres"}:
        return _postgres(parsed)
    raise ConfigurationError(f"Easel does not keep its state in a {kind!r} database", hint=_HINT)


def _postgres(url: sa.URL) -> Database:
    try:
        from easel.database.postgres import PostgresDatabase  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            f"the driver for PostgreSQL is missing: {error}",
            hint="pip install 'easel-comfy[postgres]'",
        ) from error
    return PostgresDatabase(url)


def _sqlite(url: sa.URL) -> Database:
    from easel.database.sqlite import SqliteDatabase  # noqa: PLC0415

    name = url.database or ":memory:"
    if name == ":memory:" or name.startswith("file:"):
        raise ConfigurationError(
            "the platform's state cannot live in memory or behind a file: URI: accepted tasks must survive a restart",
            hint="name a file: sqlite:///folder/easel.db",
        )
    if url.query:
        raise ConfigurationError(
            f"the database's URL has options that SQLite here does not take: {', '.join(url.query)}",
            hint="name only the file: sqlite:///folder/easel.db",
        )
    return SqliteDatabase(Path(name))
