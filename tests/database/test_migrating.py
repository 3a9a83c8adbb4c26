from __future__ import annotations

import asyncio
import sqlite3
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from easel.database import open_database
from easel.database.migrating import configuration, migrate
from easel.database.tables import metadata
from easel.errors import ConfigurationError, DatabaseTooNew
from tests.contract.databases import Database as Server
from tests.contract.task_stores import fresh_database


async def opened_and_closed(home: Path) -> None:
    database = open_database(None, home)
    try:
        await database.open()
    finally:
        await database.close()


def differences(connection: sa.Connection) -> list[object]:
    """What Alembic sees that the tables as they are and the metadata do not share."""
    context = MigrationContext.configure(
        connection, opts={"compare_type": True, "compare_server_default": True}
    )
    return list(compare_metadata(context, metadata))


def shape(path: Path) -> dict[str, str]:
    """Every table's and index's own words, as far as they mean something."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {name: "".join(sql.split()) for name, sql in rows if name != "alembic_version"}


async def test_the_migrations_add_up_to_the_tables(tmp_path: Path) -> None:
    await opened_and_closed(tmp_path)
    path = tmp_path / "easel.db"
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert differences(connection) == []
    engine.dispose()
    # Alembic does not look at partial indexes and WITHOUT ROWID.
    wanted = tmp_path / "wanted.db"
    engine = sa.create_engine(f"sqlite:///{wanted}")
    metadata.create_all(engine)
    engine.dispose()
    assert shape(path) == shape(wanted)


@pytest.mark.database
def test_they_do_on_postgresql(postgresql: Server) -> None:
    def indexes(connection: sa.Connection) -> dict[str, str]:
        found = connection.execute(
            sa.text("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'")
        )
        return {name: said for name, said in found if not name.startswith("alembic")}

    url = fresh_database(postgresql).replace("postgresql:", "postgresql+psycopg:")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        assert migrate(connection, "here")
    with engine.begin() as connection:
        assert not migrate(connection, "here")
        assert differences(connection) == []
        migrated = indexes(connection)
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
        metadata.create_all(connection)
        assert migrated == indexes(connection)
    engine.dispose()
    fresh_database(postgresql)


def test_down_and_up_again(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'easel.db'}")
    with engine.begin() as connection:
        assert migrate(connection, "here")
        config = configuration()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert sa.inspect(connection).get_table_names() == ["alembic_version"]
        assert migrate(connection, "here")
        assert differences(connection) == []
    engine.dispose()


async def test_to_open_it_again_changes_nothing(tmp_path: Path) -> None:
    await opened_and_closed(tmp_path)
    before = shape(tmp_path / "easel.db")
    await opened_and_closed(tmp_path)
    assert shape(tmp_path / "easel.db") == before


async def test_a_newer_versions_database_is_refused(tmp_path: Path) -> None:
    await opened_and_closed(tmp_path)
    with sqlite3.connect(tmp_path / "easel.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = shape(tmp_path / "easel.db")
    with pytest.raises(DatabaseTooNew, match=r"newer version of Easel.*9999.*0001") as caught:
        await opened_and_closed(tmp_path)
    assert caught.value.hint
    assert shape(tmp_path / "easel.db") == before


async def test_another_programs_tables_are_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "easel.db") as connection:
        connection.execute("CREATE TABLE tasks (mine)")
    with pytest.raises(ConfigurationError, match="not Easel's: tasks"):
        await opened_and_closed(tmp_path)
    assert shape(tmp_path / "easel.db") == {"tasks": "CREATETABLEtasks(mine)"}


async def test_a_migration_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alembic.operations import Operations

    monkeypatch.setattr(Operations, "create_index", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await opened_and_closed(tmp_path)
    assert shape(tmp_path / "easel.db") == {}
    monkeypatch.undo()
    await opened_and_closed(tmp_path)


OPEN = """
import asyncio, sys
from pathlib import Path
from easel.database import open_database
async def main():
    database = open_database(None, Path(sys.argv[1]))
    print("ready", flush=True)
    sys.stdin.readline()
    await database.open()
    await database.close()
asyncio.run(main())
"""


async def test_several_processes_open_a_new_one_at_once(tmp_path: Path) -> None:
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            OPEN,
            str(tmp_path / "home"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(4)
    ]
    async with asyncio.timeout(40):
        for process in processes:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
        for process in processes:
            _, said = await process.communicate()
            assert (process.returncode, said) == (0, b"")
    assert "tasks_claim" in shape(tmp_path / "home" / "easel.db")


async def test_several_open_it_at_once_in_one_process(tmp_path: Path) -> None:
    await asyncio.gather(*(opened_and_closed(tmp_path / "home") for _ in range(5)))
