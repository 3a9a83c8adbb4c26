"""Every kind of output comes back under a name of its own, also from the cache; what is gone is a typed error."""

from __future__ import annotations

import asyncio
import base64
import shutil
from typing import Any

import pytest

from tests.agent.agents import Agent, node, picture, salts, text_file

TONE = node("EaselAudio", frequency=440.0, seconds=0.05, filename_prefix="audio/x", folder="temp")


def video() -> dict[str, Any]:
    return node(
        "EaselVideo",
        frames=2,
        frame_rate=8.0,
        format="image/gif",
        filename_prefix="video/x",
        folder="output",
        salt=next(salts),
    )


async def fetched(served: Agent, entry: dict[str, Any]) -> bytes:
    async with served.http.get(entry["url"]) as answer:
        assert answer.status == 200
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        return await answer.read()


async def test_every_kind(served: Agent) -> None:
    kinds = {
        "audio": TONE,
        "gifs": video(),
        "text": node("EaselText", text="said", announce=True),
        **{
            key: text_file(f"as {key}", result_key=key, extension=extension)["1"]
            for key, extension in {
                "files": ".txt",
                "3d": ".glb",
                "video": ".mp4",
                "latents": ".latent",
                "images": ".png",
                "whatever": ".bin",
            }.items()
        },
    }
    nodes = await served.run(kinds, "?output_base64=true")
    assert set(nodes) == set(kinds)
    names = set()
    for key in kinds:
        entries, results = nodes[key]["images"], nodes[key]["results"]
        assert len(entries) == 1, key
        if key == "text":
            assert entries[0]["text"] == "said"
            assert entries[0]["kind"] == "text"
            assert results == []
            continue
        names.add(entries[0]["filename"])
        raw = base64.b64decode(results[0], validate=True)
        assert len(results[0]) % 4 == 0, "padded"
        assert raw == await fetched(served, entries[0])
        assert len(raw) == entries[0]["size"]
        if key not in ("audio", "gifs"):
            assert raw == f"as {key}".encode()
    assert len(names) == len(kinds) - 1
    assert nodes["gifs"]["images"][0]["frame_rate"] == 8.0


@pytest.mark.parametrize("length", [0, 1, 2, 3, 100, 400_001])
async def test_base64_of_every_length(served: Agent, length: int) -> None:
    content = "x" * length
    nodes = await served.run(text_file(content, extension=".bin"), "?output_base64=true")
    result = nodes["1"]["results"][0]
    assert base64.b64decode(result, validate=True) == content.encode()
    assert result == base64.b64encode(content.encode()).decode()


async def test_a_cached_run_has_copies_of_its_own(served: Agent) -> None:
    prompt = picture()
    first = await served.run(prompt, task_id="first")
    second = await served.run(prompt, task_id="second")
    assert sum("engine/output" in name for name in served.files()) == 1, "it was cached"
    one, two = first["2"]["images"][0], second["2"]["images"][0]
    assert one["filename"] != two["filename"]
    data = await fetched(served, one)
    await asyncio.to_thread(shutil.rmtree, served.data / "outputs" / "first")
    assert await fetched(served, two) == data
    for progress in second.values():
        assert progress["max"] == progress["value"] > 0


async def test_a_cached_prompt_whose_file_is_gone(served: Agent) -> None:
    prompt = picture()
    await served.run(prompt)
    folder = served.data.parent / "engine" / "output"
    for path in await asyncio.to_thread(list, folder.glob("*.png")):
        await asyncio.to_thread(path.unlink)
    before = served.files()
    status, body = await served.post(prompt, task_id="gone")
    assert (status, body["code"]) == (502, "output_failed")
    assert (body["node_id"], body["node_type"]) == ("2", "SaveImage")
    assert body["hint"]
    assert (await served.record("gone"))["state"] == "failed"
    assert {name for name in served.files() - before if "outputs" in name} == set()
    assert await served.run(picture())


async def test_what_was_copied_before_an_output_failed_does_not_stay(served: Agent) -> None:
    prompt = {
        "1": text_file("kept")["1"],
        "2": text_file("gone", filename_prefix="gone/x")["1"],
    }
    await served.run(prompt)
    await asyncio.to_thread(shutil.rmtree, served.data.parent / "engine" / "output" / "gone")
    status, body = await served.post(prompt, task_id="half")
    assert (status, body["code"], body["node_id"]) == (502, "output_failed", "2")
    assert not any("outputs/half" in name for name in served.files())


async def test_stored_files_that_are_gone(served: Agent) -> None:
    prompt = picture()
    nodes = await served.run(prompt, task_id="kept")
    await asyncio.to_thread(shutil.rmtree, served.data / "outputs" / "kept")
    async with served.http.get(nodes["2"]["images"][0]["url"]) as answer:
        assert answer.status == 404
        assert (await answer.json())["code"] == "file_not_found"
    status, body = await served.post(prompt, "?output_base64=true", task_id="kept")
    assert (status, body["code"]) == (404, "file_not_found")
    query = {"id": "kept", "output_base64": "true"}
    async with served.http.get("/api/status", params=query) as answer:
        assert answer.status == 404
    assert await served.post(prompt, task_id="kept") == (200, nodes)


async def test_a_disk_that_cannot_be_written(served: Agent) -> None:
    folder = served.data / "outputs"
    await asyncio.to_thread(shutil.rmtree, folder)
    await asyncio.to_thread(folder.write_bytes, b"")
    status, body = await served.post(picture())
    assert (status, body["code"], body["node_id"]) == (502, "output_failed", "2")
    await asyncio.to_thread(folder.unlink)
    await asyncio.to_thread(folder.mkdir)
    assert await served.run(picture())


async def test_a_page_that_a_workflow_saved_may_do_nothing(served: Agent) -> None:
    nodes = await served.run(text_file("<script>alert(1)</script>", extension=".html"))
    async with served.http.get(nodes["1"]["images"][0]["url"]) as answer:
        assert "sandbox" in answer.headers["Content-Security-Policy"]
