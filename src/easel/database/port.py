"""The port behind which a database is reached. `open_database` picks one by the URL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, TypeVar

import sqlalchemy as sa

T = TypeVar("T")


class Database(Protocol):
    """One database of the platform's state. No method blocks the event loop."""

    kind: Literal["sqlite", "postgresql"]

    async def open(self) -> None:
        """Connect, and bring the tables to this version's form (Alembic). Called once, before anything else.

        Raises `DatabaseTooNew` when a newer version has written it, `ConfigurationError` when it cannot be used at all,
        `StoreFailed` when it does not answer.
        """

    async def close(self) -> None:
        """Finish what is being written and release everything. Safe to call twice."""

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Do ordinary queries in one transaction, committed when ``work`` returns and undone when it raises.

        ``work`` runs in a thread and must be quick: on SQLite it holds up every other write. Raises `StoreFailed` when the
        database fails, and whatever ``work`` raises itself; a violated constraint is SQLAlchemy's IntegrityError.
        """
