"""Every statement of the hot path finds its rows by an index, however many tasks there are."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from easel.database.tables import metadata
from easel.tasks.statements import sqlite as sql


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    engine = sa.create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
    metadata.create_all(engine)
    yield connection
    engine.dispose()


class Anything(dict[str, int]):
    """A value for every parameter."""

    def __missing__(self, name: str) -> int:
        return 1


def plan(connection: sqlite3.Connection, statement: str) -> list[str]:
    """How SQLite will do it."""
    values = Anything() if "?" not in statement else (1,)
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]


@pytest.mark.parametrize(
    ("statement", "indexes"),
    [
        (sql.INSERT_TASK, {"tasks_owner", "tasks_claim"}),
        (sql.CLAIM, {"tasks_claim"}),
        (sql.SELECT_HEAD, {"tasks_claim"}),
        (sql.COUNT_WAITING, {"tasks_owner"}),
        (sql.POSITION, {"tasks_claim"}),
        (sql.EXPIRE, {"tasks_deadline"}),
        (sql.SELECT_OVERDUE, {"tasks_lease"}),
        (sql.SELECT_ALL_HELD, {"tasks_lease"}),
        (sql.FORGET_ENDED, {"tasks_ended"}),
        (sql.COUNTS, {"tasks_list"}),
        (sql.page(owner=True, states=2, rear=True, before=True), {"tasks_list"}),
        (sql.START, set()),
        (sql.RENEW, set()),
        (sql.PROGRESS, set()),
        (sql.FINISH, set()),
        (sql.SELECT_BY_ID, set()),
        (sql.SELECT_BY_UID, set()),
        (sql.SELECT_EVENTS, set()),
        (sql.SELECT_WORK, set()),
        *((part, set()) for part in sql.FORGET_PARTS),
    ],
)
def test_it_goes_by_indexes(
    connection: sqlite3.Connection, statement: str, indexes: set[str]
) -> None:
    steps = plan(connection, statement)
    said = "\n".join(steps)
    assert "SEARCH" in said
    assert "SCAN" not in said or "SCAN t USING INDEX tasks_lease" in said  # all of it is wanted
    for index in indexes:
        assert f"INDEX {index}" in said, said


@pytest.mark.parametrize("statement", [sql.CLAIM, sql.SELECT_HEAD, sql.INSERT_TASK])
def test_nothing_is_sorted_to_find_the_first(
    connection: sqlite3.Connection, statement: str
) -> None:
    assert "TEMP B-TREE" not in "\n".join(plan(connection, statement))
