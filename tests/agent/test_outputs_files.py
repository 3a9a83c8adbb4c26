"""Outputs are stored whole, under unique names, and found again safely."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from easel.errors import FileNotFound, OutputFailed
from easel.storage.outputs import OutputFiles, output_url, value_entry
from easel.workflow.outputs import OutputItem, collect
from tests.agent.web import files_below


def item(filename: str = "ComfyUI_00001_.png", **more: object) -> OutputItem:
    listed = {"filename": filename, "subfolder": "a/b", "type": "output", **more}
    (one,) = collect({"9": {"images": [listed]}}, {"9": {"class_type": "SaveImage", "inputs": {}}})
    return one


async def pieces(*content: bytes) -> AsyncIterator[bytes]:
    for piece in content:
        yield piece


@pytest.fixture
async def files(tmp_path: Path) -> OutputFiles:
    made = OutputFiles(tmp_path)
    await made.open()
    return made


async def test_a_stored_output(files: OutputFiles, tmp_path: Path) -> None:
    entry = await files.store("task-1", item(format="x"), pieces(b"abc", b"def"))
    name = entry["filename"]
    assert entry == {
        "format": "x",
        "filename": name,
        "subfolder": "",
        "type": "output",
        "url": f"/api/outputs/task-1/{name}",
        "size": 6,
        "media_type": "image/png",
        "kind": "image",
        "node": "9",
        "key": "images",
    }
    assert name.startswith("ComfyUI_00001_-")
    assert name.endswith(".png")
    found = await files.find("task-1", name)
    assert (found.size, found.media_type) == (6, "image/png")
    assert found.path.read_bytes() == b"abcdef"
    assert files_below(tmp_path) == [f"outputs/task-1/{name}"]


async def test_the_same_name_again_is_another_file(files: OutputFiles) -> None:
    entries = await asyncio.gather(
        *(files.store("t", item(), pieces(str(number).encode())) for number in range(20))
    )
    assert len({entry["filename"] for entry in entries}) == 20
    for number, entry in enumerate(entries):
        assert (
            await files.read_base64("t", entry["filename"], 10)
            == base64.b64encode(str(number).encode()).decode()
        )


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1024 * 1024, 3_500_001])
async def test_sizes_and_padded_base64(files: OutputFiles, size: int) -> None:
    content = os.urandom(size)
    chunks = [content[start : start + 65_536] for start in range(0, size, 65_536)]
    entry = await files.store("t", item(), pieces(*chunks))
    assert entry["size"] == size
    text = await files.read_base64("t", entry["filename"], size)
    assert base64.b64decode(text, validate=True) == content
    assert len(text) % 4 == 0
    if size:
        with pytest.raises(OutputFailed, match="too many"):
            await files.read_base64("t", entry["filename"], size - 1)


@pytest.mark.parametrize("before", [0, 3 * 1024 * 1024])
async def test_a_stream_that_breaks_leaves_nothing(
    files: OutputFiles, tmp_path: Path, before: int
) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield b"x" * (before or 1)
        raise RuntimeError("the engine went away")

    with pytest.raises(RuntimeError, match="went away"):
        await files.store("t", item(), breaking())
    assert files_below(tmp_path) == []


async def test_a_cancelled_copy_leaves_nothing(files: OutputFiles, tmp_path: Path) -> None:
    reached = asyncio.Event()

    async def waiting() -> AsyncIterator[bytes]:
        yield b"x" * 3_000_000
        reached.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(files.store("t", item(), waiting()))
    async with asyncio.timeout(10):
        await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files_below(tmp_path) == []


async def test_a_half_file_is_never_found(files: OutputFiles, tmp_path: Path) -> None:
    seen: list[str] = []

    async def looking() -> AsyncIterator[bytes]:
        yield b"x" * 2_000_000
        seen.extend(await asyncio.to_thread(files_below, tmp_path / "outputs" / "t"))
        yield b"y"

    await files.store("t", item(), looking())
    (half,) = seen
    assert half.startswith(".")
    with pytest.raises(FileNotFound):
        await files.find("t", half)


async def test_what_a_dead_agent_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "outputs" / "t").mkdir(parents=True)
    (tmp_path / "outputs" / "t" / ".a.png.part").write_bytes(b"half")
    (tmp_path / "outputs" / "t" / "b.png").write_bytes(b"whole")
    await OutputFiles(tmp_path).open()
    assert files_below(tmp_path) == ["outputs/t/b.png"]


async def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    files = OutputFiles(tmp_path)
    (tmp_path / "outputs").write_bytes(b"a file where the folder should be")
    with pytest.raises(OutputFailed) as caught:
        await files.store("t", item(), pieces(b"x"))
    assert (caught.value.node_id, caught.value.node_type) == ("9", "SaveImage")


@pytest.mark.parametrize(
    ("task_id", "name"),
    [
        ("t", "../t/x.png"),
        ("t", "../../secret"),
        ("../x", "secret"),
        ("..", "secret"),
        (".", "secret"),
        ("", "secret"),
        ("t", ""),
        ("t", "."),
        ("t", ".."),
        ("t", "/etc/passwd"),
        ("t", "a\\b"),
        ("t", "a\0b"),
        ("t", "missing.png"),
        ("t", "link.png"),
        ("t", "folder"),
        ("t", "x" * 5000),
        ("\ud800", "x"),
        ("t", "\ud800"),
    ],
)
async def test_names_from_outside(tmp_path: Path, task_id: str, name: str) -> None:
    files = OutputFiles(tmp_path)
    await files.open()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "outputs" / "secret").write_text("secret")
    (tmp_path / "outputs" / "t" / "folder").mkdir(parents=True)
    (tmp_path / "outputs" / "t" / "link.png").symlink_to(tmp_path / "secret")
    with pytest.raises(FileNotFound):
        await files.find(task_id, name)
    with pytest.raises(FileNotFound):
        await files.read_base64(task_id, name, 1000)


@given(task_id=st.text(max_size=40), filename=st.text(min_size=1, max_size=300))
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_task_id_and_any_name_stay_inside(tmp_path: Path, task_id: str, filename: str) -> None:
    async def run() -> None:
        files = OutputFiles(tmp_path)
        entry = await files.store(task_id, item(filename), pieces(b"x"))
        found = await files.find(task_id, entry["filename"])
        assert found.path.parent.parent == tmp_path / "outputs"
        assert len(entry["filename"].encode()) < 200
        entry["url"].encode("ascii")
        await files.delete(task_id)
        with pytest.raises(FileNotFound):
            await files.find(task_id, entry["filename"])

    asyncio.run(run())
    assert files_below(tmp_path) == []


async def test_tasks_whose_ids_differ_in_case_do_not_share_a_folder(files: OutputFiles) -> None:
    await files.store("task", item(), pieces(b"x"))
    entry = await files.store("TASK", item(), pieces(b"y"))
    await files.delete("task")
    assert (await files.find("TASK", entry["filename"])).size == 1


async def test_expiry(files: OutputFiles, tmp_path: Path) -> None:
    old = await files.store("old", item(), pieces(b"x"))
    new = await files.store("new", item(), pieces(b"x"))
    os.utime(tmp_path / "outputs" / "old", (1000, 1000))
    assert await files.expire(2000) == 1
    assert await files.expire(2000) == 0
    assert (await files.find("new", new["filename"])).size == 1
    with pytest.raises(FileNotFound):
        await files.find("old", old["filename"])
    await files.delete("never there")


def test_urls_are_escaped() -> None:
    assert output_url("a b/c", "d?e#f%.png") == "/api/outputs/a%20b%2Fc/d%3Fe%23f%25.png"


def test_values_that_are_no_files() -> None:
    text, other = collect({"9": {"text": ["hi"], "n": [3]}}, {})
    assert value_entry(text) == {"kind": "text", "node": "9", "key": "text", "text": "hi"}
    assert value_entry(other) == {"kind": "json", "node": "9", "key": "n", "value": 3}
