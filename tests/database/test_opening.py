from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from easel.database import open_database
from easel.errors import ConfigurationError


@pytest.mark.parametrize(
    "url",
    [
        "mysql://a:pa55@b/c",
        "pa55",
        "",
        "://",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=memory",
        "sqlite:///easel.db?timeout=5",
        "postgresql://a:pa55@b:port/c",
    ],
)
def test_what_cannot_be_used_is_said(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_database(url, tmp_path)
    assert caught.value.hint
    assert "pa55" not in str(caught.value)


async def test_the_file_is_the_users_own(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        database = open_database(None, tmp_path / "a" / "home")
        await database.open()
        try:
            folder = tmp_path / "a" / "home"
            files = list(folder.iterdir())
            assert {file.name for file in files} == {"easel.db", "easel.db-wal", "easel.db-shm"}
            assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
            assert folder.stat().st_mode & 0o777 == 0o700
        finally:
            await database.close()
    finally:
        os.umask(before)
    assert [file.name for file in folder.iterdir()] == ["easel.db"]


async def test_a_file_by_its_url(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/100% sure/tasks?.db", tmp_path / "unused")
    assert database.kind == "sqlite"
    await database.open()
    await database.close()
    assert not (tmp_path / "unused").exists()


async def test_to_name_it_touches_nothing(tmp_path: Path) -> None:
    database = open_database(None, tmp_path / "home")
    await database.close()
    await database.close()
    assert list(tmp_path.iterdir()) == []
    assert not [t for t in threading.enumerate() if t.name.startswith("easel-database")]


async def unusable(home: Path, words: str) -> None:
    database = open_database(None, home)
    try:
        with pytest.raises(ConfigurationError, match=words) as caught:
            await database.open()
        assert caught.value.hint
    finally:
        await database.close()


async def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "easel.db").write_bytes(b"a letter to my mother\n" * 100)
    await unusable(tmp_path, "not a database")
    assert (tmp_path / "easel.db").read_bytes().startswith(b"a letter")


async def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "easel.db").mkdir()
    await unusable(tmp_path, "unable to open|directory")


async def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    await unusable(tmp_path / "home", "cannot be opened")
