"""Ordinary SQLAlchemy queries on a SQLite connection whose transactions somebody else begins and commits."""

from __future__ import annotations

import sqlite3

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool


class RawConnection(sqlite3.Connection):
    """A connection whose `commit` and `rollback` do nothing, and whose isolation level is None for good.

    SQLAlchemy calls and sets them even in autocommit mode, and each would end the transaction of the whole group. The
    owner says ``execute("COMMIT")``.
    """

    @property
    def isolation_level(self) -> None:
        """None."""

    @isolation_level.setter
    def isolation_level(self, level: object) -> None:
        """Do nothing: to set it, even to what it is, commits."""

    def commit(self) -> None:
        """Do nothing."""

    def rollback(self) -> None:
        """Do nothing."""


def ordinary_engine(connection: RawConnection) -> sa.Engine:
    """Return an engine whose every connection is this one. To be used in the thread that owns it."""
    return sa.create_engine(
        "sqlite://",
        creator=lambda: connection,
        poolclass=StaticPool,
        pool_reset_on_return=None,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
    )
