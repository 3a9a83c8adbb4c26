"""The progress store as one table of an SQL database: SQLite, MySQL/MariaDB or PostgreSQL.

SQLAlchemy's synchronous core in a few threads: its asynchronous layer costs several times as much. On the servers each
call is one statement in a transaction of its own. SQLite has one writer thread that commits what has gathered in one
transaction, in WAL mode, so that readers never wait; several agents on one machine may share the file, but not over a
network share (WAL needs shared memory): use the folder store there.

The ``record`` column is the truth, the others are its index. Ids and owners are stored as they are when they are plain and
short, else by their digest (`database_key`): no database's length limits, case folding or forbidden characters matter.

Durability: everything survives the death of the agent. The servers sync each commit as they are configured to; SQLite
syncs the creation and the end of accepted (202) tasks, as the folder store does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from easel.agent.record import FINISHED, TaskRecord
from easel.agent.store.codec import DamagedRecordError, database_key, decode, encode
from easel.agent.store.database import (
    connect,
    described,
    failure,
    make_file,
    parse,
    worth_repeating,
)
from easel.agent.store.groups import GroupWriter
from easel.agent.store.lanes import Lanes
from easel.errors import StoreFailed

log = logging.getLogger(__name__)

T = TypeVar("T")

_KEY = sa.String(100).with_variant(
    mysql.VARCHAR(100, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
)
_JSON = sa.Text().with_variant(
    mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)

TASKS = sa.Table(
    "easel_tasks",
    sa.MetaData(),
    sa.Column("id", _KEY, primary_key=True),
    sa.Column("owner", _KEY, nullable=False),
    sa.Column("finished", sa.Boolean, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("record", _JSON, nullable=False),
    sa.Index("easel_tasks_unfinished", "owner", "finished", "created"),
)

INSERT = TASKS.insert()
SELECT = sa.select(TASKS.c.record).where(TASKS.c.id == sa.bindparam("id"))
UNFINISHED = (
    sa.select(TASKS.c.record)
    .where(TASKS.c.owner == sa.bindparam("owner"), TASKS.c.finished.is_(False))
    .order_by(TASKS.c.created, TASKS.c.id)
)
REPLACE_DAMAGED = (
    TASKS.update()
    .where(TASKS.c.id == sa.bindparam("key"), TASKS.c.record == sa.bindparam("damaged"))
    .values({name: sa.bindparam(name) for name in ("owner", "finished", "created", "record")})
)

_THREADS = 4
_ATTEMPTS = 3


def upsert(dialect: str) -> sa.Insert:
    """Return the statement that inserts a row or replaces the one of the same id, in a database's own words."""
    changed = ("owner", "finished", "created", "record")
    if dialect in {"mysql", "mariadb"}:
        insert = mysql.insert(TASKS)
        return insert.on_duplicate_key_update({name: insert.inserted[name] for name in changed})
    make = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = make(TASKS)
    return statement.on_conflict_do_update(
        index_elements=["id"], set_={name: statement.excluded[name] for name in changed}
    )


def _row(record: TaskRecord) -> dict[str, Any]:
    return {
        "id": database_key(record.id),
        "owner": database_key(record.owner),
        "finished": record.state in FINISHED,
        "created": record.created,
        "record": encode(record).decode(),
    }


class SqlStore:
    """A `ProgressStore` in a database. See the module's text for its guarantees.

    Raises ConfigurationError when the URL cannot be used; `open` raises it when the driver is not installed.
    """

    def __init__(self, url: str) -> None:
        self._url = parse(url)
        self._kind = self._url.get_backend_name()
        self._upsert = upsert(self._kind)
        self._lanes = Lanes(_THREADS)
        self._writer = GroupWriter(self._url, self._connect) if self._kind == "sqlite" else None
        self._engine: sa.Engine | None = None

    async def open(self) -> None:
        """Make the table unless it is there; other agents may do so at the same moment."""
        await self._lanes.run("", self._prepare)

    async def close(self) -> None:
        """Finish what is being written and hang up."""
        if self._writer is not None:
            await self._writer.close()
        await self._lanes.close(None if self._engine is None else self._engine.dispose)

    async def create(self, record: TaskRecord) -> TaskRecord | None:
        """Store the record if its id is free; else return the one that holds it."""
        row, task_id = _row(record), record.id
        return await self._write(
            record,
            lambda connection, again: _create(connection, row, task_id, again),
            durable=record.request is not None,
        )

    async def save(self, record: TaskRecord) -> None:
        """Replace the record."""
        row = _row(record)

        def save(connection: sa.Connection, _: bool) -> None:
            connection.execute(self._upsert, row)

        durable = record.request is not None and record.state in FINISHED
        await self._write(record, save, durable=durable)

    async def save_all(self, records: Sequence[TaskRecord]) -> None:
        """Replace the records in one transaction."""
        if not records:
            return
        rows = [_row(record) for record in records]

        def save(connection: sa.Connection, _: bool) -> None:
            connection.execute(self._upsert, rows)

        await self._write(records[0], save, durable=False)

    async def load(self, task_id: str) -> TaskRecord | None:
        """Return the record, or None."""
        key = database_key(task_id)

        def load(connection: sa.Connection, _: bool) -> TaskRecord | None:
            text = connection.execute(SELECT, {"id": key}).scalar()
            return None if text is None else _read(text, task_id)

        return await self._lanes.run(task_id, lambda: self._call(load))

    async def unfinished(self, owner: str) -> list[TaskRecord]:
        """Return the owner's queued and running records, oldest first."""
        key = database_key(owner)

        def unfinished(connection: sa.Connection, _: bool) -> list[TaskRecord]:
            rows = connection.execute(UNFINISHED, {"owner": key}).scalars()
            records = (_read(text, None) for text in rows)
            found = [record for record in records if record is not None]
            return sorted(found, key=lambda record: (record.created, record.id))

        return await self._lanes.run(owner, lambda: self._call(unfinished))

    async def _write(
        self, record: TaskRecord, call: Callable[[sa.Connection, bool], T], *, durable: bool
    ) -> T:
        if self._writer is not None:
            return await self._writer.run(lambda connection: call(connection, False), durable)
        return await self._lanes.run(record.id, lambda: self._call(call))

    # What follows runs in threads.

    def _connect(self) -> sa.Connection:
        if self._engine is None:
            raise StoreFailed("the progress store is not open")
        return self._engine.connect()

    def _call(self, call: Callable[[sa.Connection, bool], T]) -> T:
        """Make a call; repeat it when the pool's connection turned out to be dead, or after a deadlock.

        The call learns whether an earlier attempt may have reached the database.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                with self._connect() as connection:
                    return call(connection, attempt > 1)
            except sa.exc.DBAPIError as error:
                if attempt == _ATTEMPTS or not worth_repeating(error):
                    raise failure(error, self._url) from error
            except sa.exc.SQLAlchemyError as error:
                raise failure(error, self._url) from error

    def _prepare(self) -> None:
        self._engine = connect(self._url, _THREADS + 1)
        if self._writer is not None:
            make_file(self._url)
        self._call(self._make_table)
        names = self._call(
            lambda connection, _: {
                column["name"] for column in sa.inspect(connection).get_columns(TASKS.name)
            }
        )
        missing = sorted({column.name for column in TASKS.columns} - names)
        if missing:
            raise StoreFailed(
                f"the table {TASKS.name} of {described(self._url)} lacks {', '.join(missing)}",
                hint="another program's table is in the way, or it is of another version of Easel",
            )

    def _make_table(self, connection: sa.Connection, _: bool) -> None:
        deadline = time.monotonic() + 10
        while True:
            try:
                if self._writer is not None:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                TASKS.metadata.create_all(connection)
            except sa.exc.DBAPIError as error:
                # Two agents start at once: "already exists", "locked". The next look finds the other's table.
                if error.connection_invalidated or time.monotonic() > deadline:
                    raise
                if sa.inspect(connection).has_table(TASKS.name):
                    return
                time.sleep(0.05)  # in a thread of the store
            else:
                return


def _create(
    connection: sa.Connection, row: dict[str, Any], task_id: str, again: bool
) -> TaskRecord | None:
    while True:
        try:
            connection.execute(INSERT, row)
        except sa.exc.IntegrityError:
            text = connection.execute(SELECT, {"id": row["id"]}).scalar()
        else:
            return None
        if text is None:
            continue  # somebody has just removed it
        if again and text == row["record"]:
            return None  # the first attempt had succeeded, only its answer was lost
        holder = _read(text, task_id)
        if holder is not None:
            return holder
        replacement = {**row, "key": row["id"], "damaged": text}
        del replacement["id"]
        if connection.execute(REPLACE_DAMAGED, replacement).rowcount:
            log.warning("replaced: the row of task %r was not a task record", task_id)
            return None


def _read(text: str, task_id: str | None) -> TaskRecord | None:
    try:
        return decode(text, task_id)
    except DamagedRecordError as error:
        log.warning("ignored: a row of %s is not a task record: %s", TASKS.name, error)
        return None
