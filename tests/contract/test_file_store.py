"""What only the folder store can meet: crashes between its steps, foreign files, file systems without links."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from easel.agent.store.codec import file_stem
from easel.agent.store.files import FileStore
from easel.errors import StoreFailed
from tests.contract.records import record

LONG_AGO = time.time() - 7200


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FileStore]:
    store = FileStore(tmp_path)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no hard links."""

    def link(*_: Any, **__: Any) -> NoReturn:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)


def age(path: Path) -> None:
    os.utime(path, (LONG_AGO, LONG_AGO))


@pytest.mark.usefixtures("without_links")
async def test_without_links_one_create_wins(tmp_path: Path) -> None:
    stores = [FileStore(tmp_path) for _ in range(3)]
    for store in stores:
        await store.open()
    for n in range(60):
        outcomes = await asyncio.gather(
            *(store.create(record(f"t-{n}", owner=f"o-{m}")) for m, store in enumerate(stores))
        )
        assert sum(outcome is None for outcome in outcomes) == 1
        holder = await stores[0].load(f"t-{n}")
        assert holder is not None
        assert outcomes[int(holder.owner[2:])] is None
    for store in stores:
        await store.close()


@pytest.mark.usefixtures("without_links")
async def test_a_name_claimed_by_a_crashed_process_is_freed(
    store: FileStore, tmp_path: Path
) -> None:
    stem = file_stem("task")
    path = tmp_path / "records" / stem[-40:-38] / f"{stem}.json"
    path.parent.mkdir()
    path.write_bytes(b"")
    age(path)
    assert await store.load("task") is None
    assert await store.create(record("task")) is None
    assert await store.load("task") == record("task")


async def test_a_create_whose_answer_got_lost_has_won(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def link(source: Path, target: Path) -> None:
        real(source, target)
        raise FileExistsError  # what NFS answers when it repeats the request

    monkeypatch.setattr(os, "link", link)
    assert await store.create(record("task")) is None


async def test_markers_of_a_crash_are_cleared_away(store: FileStore, tmp_path: Path) -> None:
    folder = tmp_path / "unfinished" / file_stem("agent-1")
    await store.create(record("alive"))
    await store.create(record("ended", state="succeeded"))
    (folder / file_stem("ended")).touch()  # killed between the record and the marker
    (folder / file_stem("never")).touch()  # killed between the marker and the record
    age(folder / file_stem("never"))
    (folder / file_stem("coming")).touch()  # another thread is about to write its record
    (folder / "notes.txt").touch()  # somebody's own
    assert [task.id for task in await store.unfinished("agent-1")] == ["alive"]
    assert {path.name for path in folder.iterdir()} == {
        file_stem("alive"),
        file_stem("coming"),
        "notes.txt",
    }


async def test_half_written_files_are_removed_at_the_next_start(
    store: FileStore, tmp_path: Path
) -> None:
    (tmp_path / "new" / "old").write_text("{")
    age(tmp_path / "new" / "old")
    (tmp_path / "new" / "fresh").write_text("{")
    again = FileStore(tmp_path)
    await again.open()
    await again.close()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["fresh"]


async def test_foreign_files_are_left_and_ignored(
    store: FileStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await store.create(record("one"))
    (one,) = tmp_path.glob("records/*/one-*.json")
    stem = file_stem("two")
    two = tmp_path / "records" / stem[-40:-38] / f"{stem}.json"
    two.parent.mkdir(exist_ok=True)
    two.write_bytes(one.read_bytes())  # a copy under another task's name
    assert await store.load("two") is None
    assert "it holds the record of 'one'" in caplog.text
    assert await store.create(record("two")) is None
    assert await store.load("two") == record("two")
    (aside,) = two.parent.glob("two-*.damaged-*")
    assert aside.read_bytes() == one.read_bytes()  # nothing is thrown away


async def test_a_folder_under_a_records_name(store: FileStore, tmp_path: Path) -> None:
    stem = file_stem("task")
    (tmp_path / "records" / stem[-40:-38] / f"{stem}.json").mkdir(parents=True)
    assert await store.load("task") is None
    assert await store.create(record("task")) is None


async def test_a_full_disk_leaves_nothing_behind(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create(record("task"))

    def replace(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(StoreFailed, match="No space left") as caught:
            await store.save(record("task", state="running"))
    assert "free some space" in (caught.value.hint or "")
    assert not list((tmp_path / "new").iterdir())
    assert await store.load("task") == record("task")


async def test_names_that_differ_only_in_case_differ_in_their_files(store: FileStore) -> None:
    stems = {file_stem(name).lower() for name in ("task", "TASK", "Task", "tasK", "\u212a", "k")}
    assert len(stems) == 6
    assert all(len(stem) < 100 for stem in stems | {file_stem("x" * 10_000)})
