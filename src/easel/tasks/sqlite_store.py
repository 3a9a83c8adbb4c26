"""The task store in SQLite: every method is one piece of work for the database's writer thread, or for its readers.

JSON is made and read on the caller's side, so that the writer thread does nothing but SQL.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Sequence
from typing import Any

from easel.database.sqlite import SqliteDatabase
from easel.errors import LeaseLost, QueueFull, StoreFailed, TaskConflict, TaskNotFound
from easel.tasks.codec import (
    ResultChange,
    assigned_data,
    encode,
    encode_text,
    expired,
    first_result,
    new_lease,
    new_uid,
    percent_of,
    read_body,
    read_event,
    read_task,
    to_column,
)
from easel.tasks.model import (
    Assignment,
    Ending,
    Lease,
    NewTask,
    Progress,
    State,
    Swept,
    Task,
    TaskEvent,
)
from easel.tasks.sqlite_steps import (
    ATTEMPT,
    LAST_EVENT,
    SERVICE,
    STATE,
    UID,
    Row,
    Stored,
    add_event,
    end,
    forget,
    merge,
    only,
    release,
)
from easel.tasks.statements import sqlite as sql
from easel.tasks.waiting import WaitingCounts

LEASE_ENDED = "its instance was not heard of until the lease ended"


class SqliteTaskStore:
    """A `TaskStore` in an open `SqliteDatabase`. ``clock`` tells ms since the epoch."""

    def __init__(self, database: SqliteDatabase, *, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock
        self._waiting = WaitingCounts(database)

    async def put(self, new: NewTask) -> tuple[Task, bool]:
        """Accept a task."""
        return await self._put(new, None)

    async def put_within(self, new: NewTask, most_waiting: int) -> tuple[Task, bool]:
        """Accept a task unless too many wait."""
        return await self._put(new, most_waiting)

    async def _put(self, new: NewTask, most_waiting: int | None) -> tuple[Task, bool]:
        now = self._clock()
        uid = new_uid(now)
        key = {"service": new.service, "owner": to_column(new.owner), "id": to_column(new.id)}
        row = {
            **key,
            "uid": uid,
            "signature": new.signature,
            "priority": new.priority,
            "tags": encode_text(new.tags),
            "created": now,
            "deadline": new.deadline,
        }
        body, result = encode(new.body), first_result(new)

        def put(connection: sqlite3.Connection) -> Row | None:
            """Return the row that has the id already, None when the task is new."""
            execute = connection.execute
            if (
                most_waiting is not None
                and self._waiting.of(connection, new.service) >= most_waiting
            ):
                known = only(execute(sql.SELECT_BY_ID, key))
                if known is None:
                    raise QueueFull(
                        f"{most_waiting} tasks wait in service {new.service!r} already",
                        hint="try again later, or add instances",
                    )
                return known
            if execute(sql.INSERT_TASK, row).rowcount == 0:
                return only(execute(sql.SELECT_BY_ID, key))
            execute(sql.INSERT_BODY, {"uid": uid, "body": body})
            if result is not None:
                execute(sql.REPLACE_RESULT, {"uid": uid, "result": result})
            add_event(connection, uid, 1, now, kind="queued")
            self._waiting.add(new.service, 1)
            return None

        known = await self._database.write(put)
        if known is None:
            return _as_stored(new, uid, now), True
        task = read_task(known, known[-1])
        if task.signature != new.signature:
            raise TaskConflict(
                f"the id {new.id!r} belongs to a task with another body",
                hint="use another id, or the same body",
            )
        return task, False

    async def claim(self, service: str, instance: str, *, lease_ms: int) -> Assignment | None:
        """Give the next task to an instance."""
        now, token = self._clock(), new_lease()
        values = {
            "service": service,
            "instance": instance,
            "lease": token,
            "now": now,
            "until": now + lease_ms,
        }

        def claim(connection: sqlite3.Connection) -> tuple[Row, Row | None] | None:
            row = only(connection.execute(sql.CLAIM, values))
            if row is None:
                return None
            uid, attempt, number = row[UID], row[ATTEMPT], row[LAST_EVENT]
            work = connection.execute(sql.SELECT_WORK, {"uid": uid}).fetchone()
            add_event(
                connection, uid, number, now, kind="assigned", data=assigned_data(instance, attempt)
            )
            self._waiting.add(service, -1)
            return row, work

        found = await self._database.write(claim)
        if found is None:
            return None
        row, work = found
        if work is None:  # its lease will end; in the end it goes to the rear queue
            raise StoreFailed(f"task {row[UID]} has no body", hint="the database is damaged")
        body, result = work
        return Assignment(
            task=read_task(row, result),
            lease=Lease(uid=row[UID], token=token),
            until=now + lease_ms,
            body=read_body(body),
        )

    async def start(self, lease: Lease, at: int) -> None:
        """Note that the engine has begun."""
        mine = _mine(lease)

        def start(connection: sqlite3.Connection) -> None:
            row = only(connection.execute(sql.START, {**mine, "at": at}))
            if row is not None:
                add_event(connection, lease.uid, row[0], at, kind="started")
            elif connection.execute(sql.SELECT_HELD, mine).fetchone() is None:
                raise _lease_lost()

        await self._database.write(start)

    async def renew(
        self, leases: Sequence[Lease], *, lease_ms: int
    ) -> tuple[list[Lease], list[str]]:
        """Extend leases."""
        until = self._clock() + lease_ms

        def renew(connection: sqlite3.Connection) -> tuple[list[Lease], list[str]]:
            lost: list[Lease] = []
            cancelling: list[str] = []
            for lease in leases:
                row = only(connection.execute(sql.RENEW, {**_mine(lease), "until": until}))
                if row is None:
                    lost.append(lease)
                elif row[0]:
                    cancelling.append(lease.uid)
            return lost, cancelling

        return await self._database.write(renew)

    async def progress(self, lease: Lease, progress: Progress, *, event: bool) -> None:
        """Merge a snapshot into the task."""
        now = self._clock()
        change = ResultChange.of(progress)
        percent, node = percent_of(progress.percent), progress.current_node
        data = encode_text({"node": node, "percent": percent}) if event else ""
        values = {
            **_mine(lease),
            "percent": percent,
            "node": None if node is None else to_column(node),
            "events": int(event),
        }

        def write(connection: sqlite3.Connection) -> None:
            row = only(connection.execute(sql.PROGRESS, values))
            if row is None:
                raise _lease_lost()
            merge(connection, lease.uid, change)
            if event:
                add_event(connection, lease.uid, row[0], now, kind="progress", data=data)

        await self._database.write(write)

    async def finish(self, lease: Lease, ending: Ending) -> Task:
        """Write the end, once."""
        change = ResultChange.of(ending)
        data = encode_text({"error": ending.error}) if ending.state == "failed" else "{}"
        values = {
            **_mine(lease),
            "state": ending.state,
            "ended": ending.ended,
            "started": ending.started,
        }

        def finish(connection: sqlite3.Connection) -> Stored:
            row = only(connection.execute(sql.FINISH, values))
            if row is None:
                before = only(connection.execute(sql.SELECT_FINISHED, _mine(lease)))
                if before is None:
                    raise _lease_lost()
                return before, before[-1]
            result = merge(connection, lease.uid, change)
            add_event(
                connection, lease.uid, row[LAST_EVENT], ending.ended, kind=ending.state, data=data
            )
            return row, result

        return read_task(*await self._database.write(finish))

    async def give_back(
        self, lease: Lease, reason: str, *, counted: bool, max_delivery: int
    ) -> Task:
        """Put a held task back in line."""
        now = self._clock()

        def give_back(connection: sqlite3.Connection) -> Stored:
            held = only(connection.execute(sql.SELECT_RELEASED, _mine(lease)))
            if held is None:
                raise _lease_lost()
            most = max_delivery if counted else None
            return release(connection, held, reason, now=now, most=most, waiting=self._waiting)

        return read_task(*await self._database.write(give_back))

    async def cancel(self, service: str, owner: str, task_id: str) -> Task:
        """Cancel a task."""
        now = self._clock()
        key = {"service": service, "owner": to_column(owner), "id": to_column(task_id)}

        def cancel(connection: sqlite3.Connection) -> Row:
            found = connection.execute(sql.SELECT_FOR_CANCEL, key).fetchone()
            if found is None:
                raise _unknown(task_id)
            seq, uid, state, attempt, cancelling = found
            if state == "queued":
                self._waiting.add(service, -1)
                end(connection, seq, attempt=attempt, state="cancelled", now=now)
            elif state in {"assigned", "running"} and not cancelling:
                ((number,),) = connection.execute(sql.MARK_CANCELLING, {"seq": seq}).fetchall()
                add_event(connection, uid, number, now, kind="cancelling")
            row: Row = connection.execute(sql.SELECT_BY_ID, key).fetchone()
            return row

        row = await self._database.write(cancel)
        return read_task(row, row[-1])

    async def get(self, service: str, owner: str, task_id: str) -> Task:
        """Return a task of this owner."""
        key = {"service": service, "owner": to_column(owner), "id": to_column(task_id)}
        rows = await self._read(sql.SELECT_BY_ID, key)
        if not rows:
            raise _unknown(task_id)
        return read_task(rows[0], rows[0][-1])

    async def get_uid(self, uid: str) -> Task:
        """Return a task by Easel's own id."""
        rows = await self._read(sql.SELECT_BY_UID, {"uid": uid})
        if not rows:
            raise _unknown(uid)
        return read_task(rows[0], rows[0][-1])

    async def page(
        self,
        service: str,
        *,
        owner: str | None = None,
        states: Collection[State] = (),
        rear: bool | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[Task]:
        """Return tasks, newest first."""
        statement = sql.page(
            owner=owner is not None,
            states=len(states),
            rear=rear is not None,
            before=before is not None,
        )
        values = {
            "service": service,
            "owner": None if owner is None else to_column(owner),
            "rear": rear,
            "before": before,
            "limit": limit,
            **{f"state{n}": state for n, state in enumerate(states)},
        }
        rows = await self._read(statement, values)
        return [read_task(row, row[-1], nodes=False) for row in rows]

    async def events(self, uid: str, after: int = 0, limit: int = 1000) -> list[TaskEvent]:
        """Return a task's events."""
        values = {"uid": uid, "after": after, "limit": limit}
        return [read_event(row) for row in await self._read(sql.SELECT_EVENTS, values)]

    async def position(self, uid: str) -> int | None:
        """Return how many tasks are claimed before this one."""
        rows = await self._read(sql.POSITION, {"uid": uid})
        return rows[0][0] if rows else None

    async def counts(self, service: str) -> dict[State, int]:
        """Return how many tasks are in each state."""
        rows = await self._read(sql.COUNTS, {"service": service})
        return dict(rows)

    async def held(self, service: str | None = None) -> list[Task]:
        """Return the tasks that instances hold."""
        rows = await self._read(sql.SELECT_ALL_HELD, {"service": service})
        return [read_task(row, row[-1], nodes=False) for row in rows]

    async def sweep(self, *, max_delivery: int, limit: int = 1000) -> Swept:
        """Act on the clock; at most ``limit`` ended leases and as many deadlines."""
        now = self._clock()
        values = {"now": now, "limit": limit}
        deadline_passed = ResultChange(error=expired())

        def sweep(connection: sqlite3.Connection) -> Swept:
            swept = Swept()
            overdue: list[Row] = connection.execute(sql.SELECT_OVERDUE, values).fetchall()
            # Each goes to the head of its line: the first of them comes last.
            for held in sorted(overdue, key=lambda row: (row[4], row[0]), reverse=True):
                row, _ = release(
                    connection, held, LEASE_ENDED, now=now, most=max_delivery, waiting=self._waiting
                )
                uid, service, state = row[UID], row[SERVICE], row[STATE]
                if state == "queued":
                    swept.redelivered.append(uid)
                    if service not in swept.services:
                        swept.services.append(service)
                else:
                    (swept.rear if state == "failed" else swept.cancelled).append(uid)
            for uid, service, number in connection.execute(sql.EXPIRE, values).fetchall():
                self._waiting.add(service, -1)
                merge(connection, uid, deadline_passed)
                add_event(connection, uid, number, now, kind="expired")
                swept.expired.append(uid)
            return swept

        return await self._database.write(sweep)

    async def forget(self, service: str, *, ended_before: int, limit: int = 1000) -> list[str]:
        """Delete finished tasks."""
        values = {"service": service, "before": ended_before, "limit": limit}
        return await self._database.write(
            lambda connection: forget(connection, sql.FORGET_ENDED, values)
        )

    async def forget_service(self, service: str) -> None:
        """Delete every task of a service, some at a time: others write in between."""

        def some(connection: sqlite3.Connection) -> list[str]:
            self._waiting.forget(service)
            return forget(connection, sql.FORGET_ANY, {"service": service, "limit": 500})

        while await self._database.write(some):
            pass

    async def _read(self, statement: str, values: dict[str, Any]) -> list[Row]:
        return await self._database.read(
            lambda connection: connection.execute(statement, values).fetchall()
        )


def _as_stored(new: NewTask, uid: str, now: int) -> Task:
    return Task(
        uid=uid,
        service=new.service,
        owner=new.owner,
        id=new.id,
        signature=new.signature,
        priority=new.priority,
        tags=dict(new.tags),
        created=now,
        deadline=new.deadline,
        seeds=dict(new.seeds),
        last_event=1,
    )


def _mine(lease: Lease) -> dict[str, Any]:
    return {"uid": lease.uid, "lease": lease.token}


def _lease_lost() -> LeaseLost:
    return LeaseLost("the task is another instance's by now, or has ended")


def _unknown(task_id: str) -> TaskNotFound:
    return TaskNotFound(f"no task {task_id!r} is known")
