"""Connections to the databases a progress store can live in, and what their failures mean.

No message made here contains the URL's password.
"""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from easel.errors import ConfigurationError, StoreFailed

CONNECT_TIMEOUT = 5
"""Seconds until a server that does not answer counts as down."""

ANSWER_TIMEOUT = 30
"""Seconds until a server that has stopped answering in mid-call counts as down."""

_DRIVERS = {
    "sqlite": "sqlite+pysqlite",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
}
"""Kind of database as written in the URL, with or without a driver → SQLAlchemy's dialect and our driver."""

_INSTALL = {
    "pymysql": "pip install 'easel-comfy[mysql]'",
    "psycopg": "pip install 'easel-comfy[postgres]'",
}

_DEFAULTS: dict[str, dict[str, Any]] = {
    # Two agents on one file: wait for the other's transaction.
    "sqlite": {"timeout": 10},
    "mysql": {
        "charset": "utf8mb4",
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": ANSWER_TIMEOUT,
        "write_timeout": ANSWER_TIMEOUT,
    },
    "postgresql": {
        "connect_timeout": CONNECT_TIMEOUT,
        "tcp_user_timeout": ANSWER_TIMEOUT * 1000,
        # Connection poolers in transaction mode do not keep prepared statements.
        "prepare_threshold": None,
    },
}
_DEFAULTS["mariadb"] = _DEFAULTS["mysql"]

_MEANINGS = (
    (r"password|access denied|authentication", "check user name and password in the URL"),
    (r"unknown database|database .* does not exist", "create the database first"),
    (r"permission denied|command denied", "grant the user the right to create and use tables"),
    (r"packet|too big", "raise the server's max_allowed_packet: the task's record is larger"),
    (r"readonly", "make the database file and its folder writable for the agent's user"),
    (r"disk is full|no space", "the disk is full: free some space"),
    (r"locked", "another process keeps the database file locked"),
    (r"not a database", "the file is something else: choose another name"),
    (r"unable to open", "check that the folder exists and the agent's user may write there"),
    (r"too many connections|too many clients", "raise the server's connection limit"),
    (
        r"connect|gone away|refused|starting up|shutting down|terminat|timed? ?out|resolve|name or service",
        "start the database, or check host and port in the URL; the agent goes on when it is back",
    ),
)
"""What a driver says → what to do."""

_DEADLOCKS = {1205, 1213, "40001", "40P01"}
"""MySQL error numbers and SQL states of statements that fail for their company, not for themselves."""


def parse(text: str) -> sa.URL:
    """Return the URL with the driver we use. Raises ConfigurationError for what cannot be a progress store."""
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError) as error:
        raise ConfigurationError(
            "the progress store's URL cannot be read",
            hint="write it as mysql://user:password@host/database; "
            "special characters of the password as %XX",
        ) from error
    kind = url.drivername.partition("+")[0]
    if kind not in _DRIVERS:
        raise ConfigurationError(
            f"no progress store in a {kind!r} database",
            hint="use SQLite, MySQL, MariaDB or PostgreSQL",
        )
    url = url.set(drivername=_DRIVERS[kind])
    if kind == "sqlite" and (url.database or ":memory:") == ":memory:":
        raise ConfigurationError(
            "a progress store cannot live in memory: accepted tasks must survive a restart",
            hint="name a file: sqlite:///tasks.db",
        )
    return url


def connect(url: sa.URL, connections: int) -> sa.Engine:
    """Return an engine with a pool of that many connections, in autocommit mode; nothing is connected yet.

    Reads files (the driver's), so not on the event loop. Raises ConfigurationError when the driver is not installed.
    """
    kind = url.get_backend_name()
    try:
        engine = sa.create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            pool_size=connections,
            max_overflow=0,
            pool_recycle=1800,
            hide_parameters=True,
            connect_args={
                name: value for name, value in _DEFAULTS[kind].items() if name not in url.query
            },
        )
    except ImportError as error:
        driver = error.name or url.get_driver_name()
        raise ConfigurationError(
            f"the progress store {described(url)} needs the Python package {driver}, "
            "which is not installed",
            hint=_INSTALL.get(driver.partition(".")[0]),
        ) from error
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"the progress store {described(url)} cannot be used: {_scrubbed(error, url)}"
        ) from error
    if kind == "sqlite":
        sa.event.listen(engine, "connect", _tune)
    return engine


def _tune(connection: sqlite3.Connection, _: object) -> None:
    """With WAL, NORMAL survives the death of the process; the writer asks for more where a power cut matters."""
    connection.execute("PRAGMA synchronous=NORMAL")


def make_file(url: sa.URL) -> None:
    """Make a SQLite database's folder and file, private to the user (SQLite's WAL files inherit the mode)."""
    if url.database is None or url.database.startswith("file:"):
        return
    try:
        path = Path(url.database)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise StoreFailed(
            f"the progress store {described(url)} cannot be opened: {error.strerror or error}",
            hint="check that the folder exists and the agent's user may write there",
        ) from error


def described(url: sa.URL) -> str:
    """Return the URL for messages: without password, and without options, which may hold one."""
    return url.set(query={}).render_as_string(hide_password=True)


def _scrubbed(error: object, url: sa.URL) -> str:
    """Return a driver's message on one line, without the password."""
    text = " ".join(str(error).split())[:500]
    secrets = [url.password, *(v for k, v in url.query.items() if "pass" in k)]
    for secret in secrets:
        if secret:
            text = text.replace(str(secret), "***")
    return text


def failure(error: sa.exc.SQLAlchemyError, url: sa.URL) -> StoreFailed:
    """Return what the caller of the store meets when the database fails."""
    original = getattr(error, "orig", None) or error
    # PyMySQL's errors are pairs of number and text.
    said = original.args[1] if len(original.args) == 2 else original
    text = _scrubbed(said, url)
    hint = next((hint for words, hint in _MEANINGS if re.search(words, text.lower())), None)
    return StoreFailed(f"the progress store {described(url)} failed: {text}", hint=hint)


def worth_repeating(error: sa.exc.DBAPIError) -> bool:
    """Tell whether the same call may succeed at once: the connection was stale, or two calls were in each other's way."""
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None)
    number = error.orig.args[0] if error.orig is not None and error.orig.args else None
    return state in _DEADLOCKS or number in _DEADLOCKS


def probe(url: sa.URL) -> None:
    """Connect once and hang up, without making anything. Raises ConfigurationError or StoreFailed."""
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return  # it is made when the store is opened
    engine = connect(url, 1)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1 FROM (SELECT 1) AS t")
    except sa.exc.SQLAlchemyError as error:
        raise failure(error, url) from error
    finally:
        engine.dispose()
