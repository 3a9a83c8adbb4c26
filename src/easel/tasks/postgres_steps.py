"""What the PostgreSQL task store does in several statements within one transaction: tasks taken from their instances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from easel.database.connections import Connection
from easel.tasks.codec import ResultChange, encode_text, joined, lost, restarted_result, turn_before
from easel.tasks.model import State
from easel.tasks.statements import postgres as sql

Row: TypeAlias = tuple[Any, ...]

UID, SERVICE, STATE, LAST_EVENT = 0, 1, 5, 18
"""Places in `codec.COLUMNS`."""


class Held(NamedTuple):
    """A row of `SELECT_RELEASED` or `SELECT_OVERDUE`, locked."""

    seq: int
    uid: str
    service: str
    priority: int
    turn: int
    attempt: int
    cancelling: int


class _End(NamedTuple):
    seq: int
    uid: str
    state: State
    attempt: int
    error: dict[str, Any] | None


async def fetch(connection: Connection, statement: str, values: dict[str, Any]) -> list[Row]:
    """Return the rows of a statement."""
    cursor = await connection.execute(statement, values, binary=True)
    return await cursor.fetchall()


async def release(
    connection: Connection, held: Sequence[Held], reason: str, *, now: int, most: int | None
) -> list[tuple[Row, bytes | None]]:
    """Take tasks from their instances: back in line, or to their ends. Returns their rows and results.

    The ``most``-th attempt is the last; None: this one is not counted.
    """
    ends: list[_End] = []
    back: list[Held] = []
    for task in held:
        attempt = task.attempt - (most is None)
        if task.cancelling:
            ends.append(_End(task.seq, task.uid, "cancelled", attempt, None))
        elif most is not None and attempt >= most:
            ends.append(_End(task.seq, task.uid, "failed", attempt, lost(attempt, reason)))
        else:
            back.append(task._replace(attempt=attempt))
    uids = [task.uid for task in held]
    stored: dict[str, bytes | None] = {
        uid: joined(result)
        for uid, result in await fetch(connection, sql.SELECT_RESULTS, {"uids": uids})
    }
    rows = await _requeue(connection, back)
    kept = {uid: restarted_result(stored.get(uid)) for uid in (row[UID] for row in rows)}
    said = encode_text({"reason": reason})
    events: list[tuple[str, int, str, str]] = [
        (row[UID], row[LAST_EVENT], "redelivered", said) for row in rows
    ]
    if ends:
        ended = await _end(connection, ends, now)
        for row, error in ended:
            if error is not None:
                kept[row[UID]] = ResultChange(error=error).applied(stored.get(row[UID]))
            data = "{}" if error is None else encode_text({"error": error})
            events.append((row[UID], row[LAST_EVENT], row[STATE], data))
        rows += [row for row, _ in ended]
    await _keep_results(connection, {u: r for u, r in kept.items() if r != stored.get(u)})
    numbered = dict(zip(("uids", "numbers", "kinds", "datas"), _columns(events, 4), strict=True))
    await connection.execute(sql.INSERT_EVENTS, {**numbered, "now": now})
    return [(row, {**stored, **kept}.get(row[UID])) for row in rows]


async def _requeue(connection: Connection, back: list[Held]) -> list[Row]:
    """Put tasks before all others of their priority, in the order that they had among each other."""
    services: dict[str, int] = {}
    for task in back:
        services[task.service] = services.get(task.service, 0) + 1
    for service in sorted(services):
        values = {"service": service, "count": services[service]}
        await connection.execute(sql.DRAW_NUMBERS, values)
    heads: dict[tuple[str, int], tuple[int, int] | None] = {}
    turns: list[int] = []
    back = sorted(back, key=lambda task: (task.turn, task.seq), reverse=True)
    for task in back:
        line = task.service, task.priority
        if line not in heads:
            values = {"service": task.service, "priority": task.priority}
            found = await fetch(connection, sql.SELECT_HEAD, values)
            heads[line] = (found[0][0], found[0][1]) if found else None
        turns.append(turn_before(task.turn, task.seq, heads[line]))
        heads[line] = (turns[-1], task.seq)
    if not back:
        return []
    values = {
        "seqs": [task.seq for task in back],
        "turns": turns,
        "attempts": [task.attempt for task in back],
    }
    return await fetch(connection, sql.REQUEUE, values)


async def _end(
    connection: Connection, ends: list[_End], now: int
) -> list[tuple[Row, dict[str, Any] | None]]:
    values = {
        "seqs": [end.seq for end in ends],
        "states": [end.state for end in ends],
        "rears": [int(end.error is not None) for end in ends],
        "attempts": [end.attempt for end in ends],
        "now": now,
    }
    rows = await fetch(connection, sql.END, values)
    errors = {end.uid: end.error for end in ends}
    return [(row, errors[row[UID]]) for row in rows]


async def _keep_results(connection: Connection, results: dict[str, bytes | None]) -> None:
    gone = [uid for uid, result in results.items() if result is None]
    changed = {uid: result for uid, result in results.items() if result is not None}
    if gone:
        await connection.execute(sql.DELETE_RESULTS, {"uids": gone})
    if changed:
        values = {"uids": list(changed), "results": list(changed.values())}
        await connection.execute(sql.REPLACE_RESULTS, values)


def _columns(rows: list[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [[row[n] for row in rows] for n in range(width)]
