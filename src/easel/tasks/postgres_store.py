"""The task store in PostgreSQL: nearly every method is one statement, and so one round trip and one transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, TypeVar, cast

from easel.database.connections import Connection
from easel.database.postgres import PostgresDatabase
from easel.errors import LeaseLost, QueueFull, StoreFailed, TaskConflict, TaskNotFound
from easel.tasks.codec import (
    ResultChange,
    encode,
    encode_text,
    expired,
    first_result,
    joined,
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
from easel.tasks.postgres_line import Line
from easel.tasks.postgres_steps import SERVICE, STATE, UID, Held, Row, fetch, release
from easel.tasks.statements import postgres as sql

T = TypeVar("T")

LEASE_ENDED = "its instance was not heard of until the lease ended"


class PostgresTaskStore:
    """A `TaskStore` in an open `PostgresDatabase`. ``clock`` tells ms since the epoch."""

    def __init__(self, database: PostgresDatabase, *, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock
        self._line = Line(database)

    async def put(self, new: NewTask) -> tuple[Task, bool]:
        """Accept a task."""
        return await self._put(new, None)

    async def put_within(self, new: NewTask, most_waiting: int) -> tuple[Task, bool]:
        """Accept a task unless too many wait."""
        return await self._put(new, most_waiting)

    async def _put(self, new: NewTask, most_waiting: int | None) -> tuple[Task, bool]:
        now = self._clock()
        uid = new_uid(now)
        row = {
            "uid": uid,
            "service": to_column(new.service),
            "owner": to_column(new.owner),
            "id": to_column(new.id),
            "signature": new.signature,
            "priority": new.priority,
            "tags": encode_text(new.tags),
            "created": now,
            "deadline": new.deadline,
            "body": encode(new.body),
            "result": first_result(new),
        }
        outcome = await self._line.put(row, most_waiting)
        if outcome is True:
            return _as_stored(new, uid, now), True
        if outcome is False:
            raise QueueFull(
                f"{most_waiting} tasks wait in service {new.service!r} already",
                hint="try again later, or add instances",
            )
        task = _task(outcome)
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
            "service": to_column(service),
            "instance": to_column(instance),
            "lease": token,
            "now": now,
            "until": now + lease_ms,
            # The attempt's number is known to the statement only.
            "said": encode_text({"instance": instance})[:-1] + ',"attempt":',
        }
        rows = await self._rows(sql.CLAIM, values)
        if not rows:
            return None
        ((*row, body, result),) = rows
        if body is None:
            raise StoreFailed(f"task {row[UID]} has no body", hint="the database is damaged")
        return Assignment(
            task=_task((*row, result)),
            lease=Lease(uid=row[UID], token=token),
            until=now + lease_ms,
            body=read_body(body),
        )

    async def start(self, lease: Lease, at: int) -> None:
        """Note that the engine has begun."""
        ((held,),) = await self._rows(sql.START, {**_mine(lease), "at": at})
        if not held:
            raise _lease_lost()

    async def renew(
        self, leases: Sequence[Lease], *, lease_ms: int
    ) -> tuple[list[Lease], list[str]]:
        """Extend leases."""
        if not leases:
            return [], []
        given = [_mine(lease) for lease in leases]
        values = {
            "uids": [one["uid"] for one in given],
            "leases": [one["lease"] for one in given],
            "until": self._clock() + lease_ms,
        }
        kept = {
            (uid, token): cancelling
            for uid, token, cancelling in await self._rows(sql.RENEW, values)
        }
        lost = [lease for lease in leases if (lease.uid, lease.token) not in kept]
        return lost, [uid for (uid, _), cancelling in kept.items() if cancelling]

    async def progress(self, lease: Lease, progress: Progress, *, event: bool) -> None:
        """Merge a snapshot into the task."""
        now = self._clock()
        change = ResultChange.of(progress)
        percent, node = percent_of(progress.percent), progress.current_node
        values = {
            **_mine(lease),
            "percent": percent,
            "node": None if node is None else to_column(node),
            "events": int(event),
            "data": encode_text({"node": node, "percent": percent}) if event else "{}",
            "now": now,
        }

        async def write(connection: Connection) -> list[Row]:
            if not change:
                return await fetch(connection, sql.PROGRESS, values)
            async with connection.transaction():
                rows = await fetch(connection, sql.PROGRESS, values)
                if rows:  # and locked: the result is nobody else's to write
                    uids = [lease.uid]
                    stored = await fetch(connection, sql.SELECT_RESULTS, {"uids": uids})
                    result = change.applied(joined(stored[0][1]) if stored else None)
                    changed = {"uids": uids, "results": [result]}
                    await connection.execute(sql.REPLACE_RESULTS, changed)
                return rows

        if not await self._do(write):
            raise _lease_lost()

    async def finish(self, lease: Lease, ending: Ending) -> Task:
        """Write the end, once."""
        change = ResultChange.of(ending)
        values = {
            **_mine(lease),
            "state": ending.state,
            "ended": ending.ended,
            "started": ending.started,
            "change": change.applied(None) if change else None,
            "data": encode_text({"error": ending.error}) if ending.state == "failed" else "{}",
        }
        rows = await self._rows(sql.FINISH, values) or await self._rows(
            sql.SELECT_FINISHED, _mine(lease)
        )
        if not rows:
            raise _lease_lost()
        return _task(rows[0])

    async def give_back(
        self, lease: Lease, reason: str, *, counted: bool, max_delivery: int
    ) -> Task:
        """Put a held task back in line."""
        now = self._clock()
        most = max_delivery if counted else None

        async def give_back(connection: Connection) -> Task:
            async with connection.transaction():
                rows = await fetch(connection, sql.SELECT_RELEASED, _mine(lease))
                if not rows:
                    raise _lease_lost()
                held = [Held(*row) for row in rows]
                ((row, result),) = await release(connection, held, reason, now=now, most=most)
            return read_task(row, result)

        return await self._do(give_back)

    async def cancel(self, service: str, owner: str, task_id: str) -> Task:
        """Cancel a task."""
        key = _key(service, owner, task_id)
        rows = await self._rows(sql.CANCEL, {**key, "now": self._clock()})
        return _task(rows[0]) if rows else await self.get(service, owner, task_id)

    async def get(self, service: str, owner: str, task_id: str) -> Task:
        """Return a task of this owner."""
        rows = await self._rows(sql.SELECT_BY_ID, _key(service, owner, task_id))
        if not rows:
            raise _unknown(task_id)
        return _task(rows[0])

    async def get_uid(self, uid: str) -> Task:
        """Return a task by Easel's own id."""
        rows = await self._rows(sql.SELECT_BY_UID, {"uid": to_column(uid)})
        if not rows:
            raise _unknown(uid)
        return _task(rows[0])

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
            states=bool(states),
            rear=rear is not None,
            before=before is not None,
        )
        values = {
            "service": to_column(service),
            "owner": None if owner is None else to_column(owner),
            "states": list(states),
            "rear": None if rear is None else int(rear),
            "before": None if before is None else to_column(before),
            "limit": limit,
        }
        return [_task(row, nodes=False) for row in await self._rows(statement, values)]

    async def events(self, uid: str, after: int = 0, limit: int = 1000) -> list[TaskEvent]:
        """Return a task's events."""
        values = {"uid": to_column(uid), "after": after, "limit": limit}
        return [read_event(row) for row in await self._rows(sql.SELECT_EVENTS, values)]

    async def position(self, uid: str) -> int | None:
        """Return how many tasks are claimed before this one."""
        rows = await self._rows(sql.POSITION, {"uid": to_column(uid)})
        return rows[0][0] if rows else None

    async def counts(self, service: str) -> dict[State, int]:
        """Return how many tasks are in each state."""
        rows = await self._rows(sql.COUNTS, {"service": to_column(service)})
        return cast("dict[State, int]", dict(rows))

    async def held(self, service: str | None = None) -> list[Task]:
        """Return the tasks that instances hold, oldest first."""
        values = {"service": None if service is None else to_column(service)}
        rows = await self._rows(sql.SELECT_HELD, values)
        return [_task(row, nodes=False) for row in sorted(rows, key=lambda row: row[UID])]

    async def sweep(self, *, max_delivery: int, limit: int = 1000) -> Swept:
        """Act on the clock; at most ``limit`` ended leases and as many deadlines."""
        now = self._clock()
        values = {"now": now, "limit": limit}

        async def release_overdue(connection: Connection) -> list[tuple[Row, bytes | None]]:
            async with connection.transaction():
                rows = await fetch(connection, sql.SELECT_OVERDUE, values)
                if not rows:
                    return []
                held = [Held(*row) for row in rows]
                return await release(connection, held, LEASE_ENDED, now=now, most=max_delivery)

        swept = Swept()
        for row, _ in await self._do(release_overdue):
            uid, service, state = row[UID], row[SERVICE], row[STATE]
            if state == "queued":
                swept.redelivered.append(uid)
                if service not in swept.services:
                    swept.services.append(service)
            else:
                (swept.rear if state == "failed" else swept.cancelled).append(uid)
        change = ResultChange(error=expired()).applied(None)
        rows = await self._rows(sql.EXPIRE, {**values, "change": change})
        swept.expired.extend(uid for (uid,) in rows)
        return swept

    async def forget(self, service: str, *, ended_before: int, limit: int = 1000) -> list[str]:
        """Delete finished tasks."""
        values = {"service": to_column(service), "ended_before": ended_before, "limit": limit}
        return [uid for (uid,) in await self._rows(sql.FORGET_ENDED, values)]

    async def forget_service(self, service: str) -> None:
        """Delete every task of a service, some at a time: others write in between."""
        values = {"service": to_column(service), "limit": 500}
        while await self._rows(sql.FORGET_ANY, values):
            pass

    async def _rows(self, statement: str, values: dict[str, Any]) -> list[Row]:
        return await self._do(lambda connection: fetch(connection, statement, values))

    async def _do(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        return await self._database.repeated(work)


def _task(row: Sequence[Any], *, nodes: bool = True) -> Task:
    """Return a task from its columns and its result, the last one."""
    result = row[-1]
    return read_task(row, None if result is None else joined(result), nodes=nodes)


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


def _key(service: str, owner: str, task_id: str) -> dict[str, Any]:
    return {
        "service": to_column(service),
        "owner": to_column(owner),
        "id": to_column(task_id),
    }


def _mine(lease: Lease) -> dict[str, Any]:
    return {"uid": to_column(lease.uid), "lease": to_column(lease.token)}


def _lease_lost() -> LeaseLost:
    return LeaseLost("the task is another instance's by now, or has ended")


def _unknown(task_id: str) -> TaskNotFound:
    return TaskNotFound(f"no task {task_id!r} is known")
