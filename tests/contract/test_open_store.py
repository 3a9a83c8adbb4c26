"""Which store a setting names, and what is said of one that cannot be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from easel.agent.store import open_store
from easel.agent.store.files import FileStore
from easel.agent.store.sql import SqlStore
from easel.errors import ConfigurationError, StoreFailed
from easel.settings import AgentSettings
from tests.contract.records import record
from tests.servers import free_port


def named(store: str, folder: Path = Path("data")) -> AgentSettings:
    return AgentSettings(store=store, data_dir=folder)


def test_files_lie_in_the_data_directory(tmp_path: Path) -> None:
    assert isinstance(open_store(named("files", tmp_path)), FileStore)
    assert not list(tmp_path.iterdir())  # nothing is made before `open`


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///x.db",
        "mysql://u:p@h/d",
        "mariadb://u@h/d",
        "postgres://h/d",
        "postgresql+asyncpg://h/d",
    ],
)
def test_urls_name_databases(url: str) -> None:
    assert isinstance(open_store(named(url)), SqlStore)


@pytest.mark.parametrize(
    ("store", "says"),
    [
        ("redis", "unknown progress store 'redis'"),
        ("", "unknown progress store"),
        ("oracle://u:secret@h/d", "no progress store in a 'oracle' database"),
        ("sqlite://", "memory"),
        ("sqlite:///:memory:", "memory"),
        ("mysql://u:secret@h:port/d", "URL cannot be read"),
    ],
)
def test_what_is_no_store_is_refused(store: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        open_store(named(store))
    assert caught.value.hint
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "driver", "extra"),
    [
        ("mysql://u:secret@h/d", "pymysql", "mysql"),
        ("postgresql://u:secret@h/d", "psycopg", "postgres"),
    ],
)
async def test_a_missing_driver_is_named(
    monkeypatch: pytest.MonkeyPatch, url: str, driver: str, extra: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == driver]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, driver, None)
    store = open_store(named(url))
    with pytest.raises(ConfigurationError, match=driver) as caught:
        await store.open()
    await store.close()
    assert caught.value.hint == f"pip install 'easel-comfy[{extra}]'"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("kind", ["mysql", "postgresql"])
async def test_a_server_that_is_not_there(kind: str) -> None:
    store = open_store(named(f"{kind}://easel:secret@127.0.0.1:{free_port()}/easel"))
    with pytest.raises(StoreFailed) as caught:
        await store.open()
    assert "start the database" in (caught.value.hint or "")
    with pytest.raises(StoreFailed):
        await store.load("task")
    await store.close()
    assert "secret" not in str(caught.value)


@pytest.mark.database
@pytest.mark.parametrize("name", ["mariadb", "postgresql"])
@pytest.mark.parametrize(
    ("right", "wrong", "hint"),
    [("pa55%2Fw%40rd", "sekret", "password"), ("/easel", "/elsewhere", "create the database")],
)
async def test_a_server_that_refuses(
    request: pytest.FixtureRequest, name: str, right: str, wrong: str, hint: str
) -> None:
    url = request.getfixturevalue(name).url
    store = open_store(named(wrong.join(url.rsplit(right, 1))))
    with pytest.raises(StoreFailed) as caught:
        await store.open()
    await store.close()
    # MariaDB says "access denied" for a database outside the user's rights
    assert hint in (caught.value.hint or "") or "access denied" in str(caught.value).lower()
    assert "sekret" not in str(caught.value)
    assert "pa55" not in str(caught.value)


async def test_another_programs_table(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE easel_tasks (id INTEGER PRIMARY KEY, name TEXT)"))
    engine.dispose()
    store = open_store(named(url))
    with pytest.raises(StoreFailed, match=r"lacks created, finished, owner, record"):
        await store.open()
    await store.close()


async def test_another_programs_file(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("This is my diary. " * 100)
    store = open_store(named(f"sqlite:///{tmp_path}/x.db"))
    with pytest.raises(StoreFailed) as caught:
        await store.open()
    await store.close()
    assert "the file is something else" in (caught.value.hint or "")
    assert (tmp_path / "x.db").read_text().startswith("This is my diary.")


@pytest.mark.parametrize("store", ["files", "sqlite:///{}/file/tasks.db"])
async def test_a_file_where_the_folder_should_be(tmp_path: Path, store: str) -> None:
    (tmp_path / "file").write_text("")
    settings = named(store.format(tmp_path), tmp_path / "file")
    opened = open_store(settings)
    with pytest.raises(StoreFailed) as caught:
        await opened.open()
    await opened.close()
    assert caught.value.hint


async def test_used_before_it_is_open(tmp_path: Path) -> None:
    store = open_store(named(f"sqlite:///{tmp_path}/x.db"))
    for call in (store.load("x"), store.save(record("x"))):
        with pytest.raises(StoreFailed, match="not open"):
            await call
    await store.close()
