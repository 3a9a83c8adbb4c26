"""What the SQLite task store's methods do within a transaction of the writer thread."""

from __future__ import annotations

import sqlite3
from typing import Any, TypeAlias

from easel.tasks.codec import ResultChange, encode_text, lost, restarted_result, turn_before
from easel.tasks.model import State
from easel.tasks.statements import sqlite as sql
from easel.tasks.waiting import WaitingCounts

Row: TypeAlias = tuple[Any, ...]
Stored: TypeAlias = tuple[Row, bytes | None]
"""A task's row (`codec.COLUMNS`) and its result row."""

UID, SERVICE, STATE, ATTEMPT, LAST_EVENT = 0, 1, 5, 12, 18
"""Places in `codec.COLUMNS`."""


def only(cursor: sqlite3.Cursor) -> Row | None:
    """Return the row of a statement that changes at most one, run to its end: only then it has taken place."""
    rows = cursor.fetchall()
    return rows[0] if rows else None


def add_event(
    connection: sqlite3.Connection, uid: str, number: int, at: int, *, kind: str, data: str = "{}"
) -> None:
    """Write an event, whose number the task's row has already."""
    values = {"uid": uid, "number": number, "at": at, "kind": kind, "data": data}
    connection.execute(sql.INSERT_EVENT, values)


def result_of(connection: sqlite3.Connection, uid: str) -> bytes | None:
    """Return a task's result row."""
    row = connection.execute(sql.SELECT_RESULT, {"uid": uid}).fetchone()
    return None if row is None else row[0]


def merge(connection: sqlite3.Connection, uid: str, change: ResultChange) -> bytes | None:
    """Apply a change to the result row, and return what it is then."""
    stored = result_of(connection, uid)
    if not change:
        return stored
    result = change.applied(stored)
    connection.execute(sql.REPLACE_RESULT, {"uid": uid, "result": result})
    return result


def end(
    connection: sqlite3.Connection,
    seq: int,
    *,
    attempt: int,
    state: State,
    now: int,
    error: dict[str, Any] | None = None,
) -> Stored:
    """End a task without an instance's word; one with an error goes into the rear queue."""
    values = {
        "seq": seq,
        "state": state,
        "rear": int(error is not None),
        "attempt": attempt,
        "now": now,
    }
    (row,) = connection.execute(sql.END, values).fetchall()
    result = merge(connection, row[UID], ResultChange(error=error))
    data = "{}" if error is None else encode_text({"error": error})
    add_event(connection, row[UID], row[LAST_EVENT], now, kind=state, data=data)
    return row, result


def release(
    connection: sqlite3.Connection,
    held: Row,
    reason: str,
    *,
    now: int,
    most: int | None,
    waiting: WaitingCounts,
) -> Stored:
    """Take a task from its instance: back in line, or to its end.

    ``held`` is a row of `SELECT_RELEASED`. The ``most``-th attempt is the last; None: this one is not counted.
    """
    seq, uid, service, priority, turn, attempt, cancelling = held
    if most is None:
        attempt -= 1
    if cancelling:
        return end(connection, seq, attempt=attempt, state="cancelled", now=now)
    if most is not None and attempt >= most:
        error = lost(attempt, reason)
        return end(connection, seq, attempt=attempt, state="failed", now=now, error=error)
    line = {"service": service, "priority": priority}
    head = connection.execute(sql.SELECT_HEAD, line).fetchone()
    values = {"seq": seq, "attempt": attempt, "turn": turn_before(turn, seq, head)}
    (row,) = connection.execute(sql.REQUEUE, values).fetchall()
    stored = result_of(connection, uid)
    result = restarted_result(stored)
    if result is not None:
        connection.execute(sql.REPLACE_RESULT, {"uid": uid, "result": result})
    elif stored is not None:
        connection.execute(sql.DELETE_RESULT, {"uid": uid})
    data = encode_text({"reason": reason})
    add_event(connection, uid, row[LAST_EVENT], now, kind="redelivered", data=data)
    waiting.add(service, 1)
    return row, result


def forget(connection: sqlite3.Connection, statement: str, values: dict[str, Any]) -> list[str]:
    """Delete the tasks that a statement deletes and returns, with all that belongs to them."""
    uids = [uid for (uid,) in connection.execute(statement, values).fetchall()]
    for part in sql.FORGET_PARTS:
        connection.executemany(part, [(uid,) for uid in uids])
    return uids
