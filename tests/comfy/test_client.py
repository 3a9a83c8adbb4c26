"""HTTP routes: files, bodies, queues, refusals, against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from easel.comfy.answers import FileRef, QueueSnapshot, decode_history, decode_queue
from easel.comfy.body import prompt_body
from easel.comfy.client import ComfyClient
from easel.comfy.events import ExecutionInterrupted
from easel.comfy.outcome import from_history
from easel.comfy.refusals import refusal
from easel.errors import (
    BodyTooLarge,
    ConfigurationError,
    EngineProtocolError,
    EngineSilent,
    EngineUnavailable,
    FileNotFound,
    InputRejected,
    InvalidPrompt,
)
from tests.comfy.replay import Replay, recording
from tests.conftest import FIXTURES


@pytest.fixture
async def server() -> AsyncIterator[Replay]:
    async with Replay() as server:
        yield server


@pytest.fixture
async def client(server: Replay) -> AsyncIterator[ComfyClient]:
    async with ComfyClient(server.url) as client:
        yield client


async def test_files_go_up_and_come_down(client: ComfyClient, tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    source = tmp_path / "source.png"
    source.write_bytes(data)
    from_path = await client.upload("ä b&c.png", source, folder="temp", subfolder="x/y")
    assert from_path == FileRef("ä b&c.png", "x/y", "temp")
    from_memory = await client.upload("memory.png", b"abc", overwrite=True)
    assert from_memory == FileRef("memory.png", "", "input")
    assert (await client.upload('a"\\%41.png', b"x")).filename == 'a"\\%41.png'
    for name in ("", "a\nb", "a\0b"):
        with pytest.raises(InputRejected):
            await client.upload(name, b"x")
    async with client.view(from_path) as stream:
        assert (stream.content_type, stream.length) == ("image/png", len(data))
        assert b"".join([chunk async for chunk in stream.chunks()]) == data
    assert await client.download(from_path, tmp_path / "copy.png") == len(data)
    assert (tmp_path / "copy.png").read_bytes() == data
    with pytest.raises(FileNotFound):
        await client.download(FileRef("missing.png"), tmp_path / "missing.png")
    assert not (tmp_path / "missing.png").exists()


async def test_facts(client: ComfyClient) -> None:
    assert (await client.system_stats())["system"]["comfyui_version"] == "0.3.64"
    assert await client.object_info() == {"Play": {"input": {}}}
    assert await client.object_info("No/Such Node") == {}
    assert await client.queue_remaining() == 0
    assert await client.queue() == QueueSnapshot((), ())
    assert await client.history("../x") is None
    await client.free()


async def test_a_file_that_stops_coming_is_an_error(tmp_path: Path) -> None:
    class Stuck(Replay):
        async def view(self, request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Length": "100"})
            await response.prepare(request)
            await response.write(b"half")
            if request.query["filename"] == "cut":
                assert request.transport is not None
                request.transport.abort()
            await asyncio.Event().wait()
            return response

    async with Stuck() as server, ComfyClient(server.url, timeout=0.3) as client:
        with pytest.raises(EngineSilent):
            await client.download(FileRef("stuck"), tmp_path / "file")
        with pytest.raises(EngineUnavailable):
            await client.download(FileRef("cut"), tmp_path / "file")


@pytest.mark.parametrize("url", ["", "127.0.0.1:8188", "ftp://host", "http://"])
def test_what_is_no_url_is_told(url: str) -> None:
    with pytest.raises(ConfigurationError, match="not the URL"):
        ComfyClient(url)


def test_urls_are_joined_below_a_prefix() -> None:
    client = ComfyClient("http://host:1/prefix/?x=1#y")
    assert str(client.url("/history/a%2Fb")) == "http://host:1/prefix/history/a%2Fb"


# Bodies.

node_ids = st.text(max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
nodes = st.fixed_dictionaries(
    {"class_type": st.text(max_size=5), "inputs": st.dictionaries(st.text(max_size=5), values)},
    optional={"_meta": st.dictionaries(st.text(max_size=5), values), "is_changed": values},
)


@given(st.dictionaries(node_ids, nodes), st.dictionaries(st.text(max_size=5), values))
def test_a_body_has_the_one_harmless_shape(prompt: Any, extra: Any) -> None:
    body = json.loads(prompt_body(prompt, client_id="c", prompt_id="p", extra_data=extra))
    assert set(body) == {"prompt", "client_id", "prompt_id", "extra_data"}
    assert body["extra_data"] == extra
    assert list(body["prompt"]) == list(prompt)
    for node_id, node in body["prompt"].items():
        assert set(node) <= {"class_type", "inputs", "_meta"}
        assert node["class_type"] == prompt[node_id]["class_type"]
        assert node["inputs"] == prompt[node_id]["inputs"]


@given(st.dictionaries(node_ids, values | st.dictionaries(st.text(max_size=5), values), min_size=1))
def test_odd_nodes_are_refused_here(prompt: Any) -> None:
    with pytest.raises(InvalidPrompt) as raised:
        prompt_body(prompt, client_id="c", prompt_id="p")
    assert raised.value.node_id is not None


def test_what_json_can_carry_is_carried() -> None:
    inputs = {"seed": 2**70, "text": "a\ud800b", "cfg": 1.5}
    body = prompt_body({"1": {"class_type": "X", "inputs": inputs}}, client_id="c", prompt_id="p")
    assert json.loads(body)["prompt"]["1"]["inputs"] == inputs
    with pytest.raises(InvalidPrompt, match="JSON"):
        prompt_body(
            {"1": {"class_type": "X", "inputs": {"x": object()}}}, client_id="c", prompt_id="p"
        )


# Answers.


def test_a_queue_of_strangers_prompts() -> None:
    raw = (
        b'{"queue_running": [[3, "r", {"1": {}}, {"client_id": "x"}, ["1"], "new"]], '
        b'"queue_pending": [[9, "late", {}], [4, "first", {}], [5.5, 7, {}]]}'
    )
    assert decode_queue(raw) == QueueSnapshot(("r",), ("first", "7", "late"))
    odd = b'{"queue_running": [], "queue_pending": [[NaN, "a", {}], [1, ["b"], {}]]}'
    snapshot = decode_queue(odd)
    assert "a" in snapshot
    assert "c" not in snapshot
    assert snapshot.remaining == 2
    with pytest.raises(EngineProtocolError):
        decode_queue(b"<html>")


@pytest.mark.parametrize("name", ["f_interrupt", "a_model_free", "e_execution_error"])
def test_recorded_histories(name: str) -> None:
    record = recording(name)
    raw = json.dumps({record.prompt_id: record.history}).encode()
    entry = decode_history(raw, record.prompt_id)
    assert entry is not None
    assert entry.outputs == record.history["outputs"]
    outcome = from_history(record.prompt_id, entry)
    expected = {"f_interrupt": "interrupted", "a_model_free": "success"}.get(name, "failed")
    assert outcome.status == expected
    if name == "f_interrupt":
        assert isinstance(outcome.interruption, ExecutionInterrupted)
        assert outcome.interruption.node_type == "KSampler"
    assert decode_history(raw, "another") is None


@pytest.mark.parametrize(
    ("entry", "status"),
    [
        ({"outputs": {}, "status": None}, "success"),
        ({"outputs": {"1": {"x": [float("nan")]}, "2": [1]}}, "success"),
        ({"outputs": {}, "status": {"status_str": "error", "messages": []}}, "failed"),
        (
            {"outputs": {}, "status": {"status_str": "success", "messages": [["new_thing", 1]]}},
            "success",
        ),
    ],
)
def test_odd_histories(entry: dict[str, Any], status: str) -> None:
    found = decode_history(json.dumps({"p": entry}).encode(), "p")
    assert found is not None
    assert from_history("p", found).status == status
    assert all(isinstance(output, dict) for output in found.outputs.values())


# Refusals.


def test_recorded_refusals_name_node_and_input() -> None:
    scenario = json.loads((FIXTURES / "scenarios" / "d_validation.json").read_text())
    refused = [entry for entry in scenario["http"] if entry["status"] == 400]
    assert len(refused) > 10
    for entry in refused:
        answer = entry["response_json"]
        error = refusal("POST /prompt", 400, msgspec.json.encode(answer))
        assert isinstance(error, InvalidPrompt)
        assert error.error == answer["error"]
        assert error.node_errors == answer["node_errors"]
        assert answer["error"]["message"] in str(error)
        if answer["node_errors"]:
            assert error.node_id in answer["node_errors"]
            assert error.node_type == answer["node_errors"][error.node_id]["class_type"]


@given(
    st.sampled_from([400, 404, 413, 500, 503]),
    st.binary(max_size=50) | values.map(msgspec.json.encode),
)
def test_any_refusal_is_an_error(status: int, raw: bytes) -> None:
    assert str(refusal("POST /prompt", status, raw))


def test_refusals_by_status() -> None:
    assert isinstance(refusal("POST /prompt", 413, b""), BodyTooLarge)
    assert isinstance(refusal("GET /queue", 502, b""), EngineUnavailable)
    assert isinstance(refusal("GET /queue", 500, b"trouble"), EngineProtocolError)
    old = refusal("POST /prompt", 400, b'{"error": "no", "node_errors": []}')
    assert isinstance(old, InvalidPrompt)
    assert old.error["message"] == "no"
