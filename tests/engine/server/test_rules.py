"""The Origin rule, CORS, OPTIONS, what happens to odd requests, what packs bring, and the page without a front end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.engine.serve import RunningEngine, load_registry, running_engine
from easel.engine.server import bodies
from easel.engine.server.frontend import FrontendFiles
from easel.engine.server.origin import foreign, loopback_names
from easel.errors import ConfigurationError, NotJson
from easel.settings import EngineSettings
from tests.engine.engines import engine

NAMES = frozenset({"localhost", "my-machine"})


@pytest.mark.parametrize(
    ("host", "origin", "refused"),
    [
        ("127.0.0.1:8188", "http://127.0.0.1:8188", False),
        ("127.0.0.1:8188", "http://127.0.0.1:9000", True),
        ("127.0.0.1:8188", "http://localhost:8188", True),
        ("127.0.0.1:8188", "http://127.0.0.1", False),
        ("127.0.0.1", "http://127.0.0.1:8188", False),
        ("localhost:8188", "HTTP://LOCALHOST:8188", False),
        ("localhost:8188", "http://evil.example", True),
        ("my-machine:8188", "http://evil.example", True),
        ("x.localhost:8188", "http://evil.example", True),
        ("[::1]:8188", "http://evil.example", True),
        ("[::1]:8188", "http://[::1]:8188", False),
        ("comfy.example.com", "https://other.example.com", False),
        ("10.1.2.3:8188", "https://other.example.com", False),
        ("127.0.0.1:8188", "null", False),
        ("127.0.0.1:99999", "http://127.0.0.1", True),
        ("127.0.0.1:x", "http://127.0.0.1", True),
        ("[127.0.0.1", "http://evil.example", True),
    ],
)
def test_origin_rule(host: str, origin: str, refused: bool) -> None:
    assert foreign(host, origin, NAMES) is refused


@given(st.text(max_size=30), st.text(max_size=30))
def test_origin_rule_never_fails(host: str, origin: str) -> None:
    foreign(host, origin, NAMES)


def test_names_of_this_machine(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost Mine # c\n10.0.0.1 other\n\nnonsense\n::1 six\n")
    assert loopback_names(hosts) == {"localhost", "mine", "six"}
    assert loopback_names(tmp_path / "missing") == {"localhost"}


async def test_cors_replaces_the_rule(tmp_path: Path) -> None:
    async with (
        engine(tmp_path / "base", cors_origin="https://app.example") as running,
        aiohttp.ClientSession(running.url) as session,
    ):
        origin = {"Origin": "http://evil.example"}
        for method, path in (("GET", "/queue"), ("OPTIONS", "/prompt"), ("GET", "/no/such")):
            async with session.request(method, path, headers=origin) as response:
                assert response.headers["Access-Control-Allow-Origin"] == "https://app.example"
                assert response.status != 403
        ws = await session.ws_connect("/ws", headers=origin)
        await ws.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/prompt", "{not json"),
        ("/prompt", "\xff\xfe"),
        ("/prompt", ""),
        ("/queue", "[]"),
        ("/queue", "x"),
        ("/queue", '{"delete": "abc"}'),
        ("/queue", '{"delete": [3]}'),
        ("/history", '{"delete": {"a": 1}}'),
        ("/history", "null"),
        ("/interrupt", "{"),
        ("/interrupt", "[]"),
        ("/interrupt", '{"prompt_id": 3}'),
        ("/free", ""),
        ("/free", "3"),
        ("/users", "[]"),
        ("/prompt", "[" * 100_000),
    ],
)
async def test_odd_bodies_get_typed_errors(
    session: aiohttp.ClientSession, path: str, body: str
) -> None:
    for prefix in ("", "/api"):
        async with session.post(prefix + path, data=body.encode("latin-1")) as response:
            answer = await response.json()
            assert response.status == 400
            assert answer["node_errors"] == {}
            assert set(answer["error"]) == {"type", "message", "details", "extra_info"}
    async with session.get("/prompt") as response:
        assert response.status == 200


@pytest.mark.parametrize("query", ["max_items=x", "offset=1.5", "max_items=", "offset=9e9"])
async def test_odd_numbers(session: aiohttp.ClientSession, query: str) -> None:
    async with session.get(f"/history?{query}") as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "bad_request"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


@given(JSON)
def test_whatever_json_knows_goes_through(value: Any) -> None:
    sent = json.dumps(value).encode()
    received = bodies.decode(sent)
    assert repr(received) == repr(json.loads(sent))
    json.loads(bodies.encode(received))


@given(st.binary(max_size=40))
def test_other_bytes_are_refused(data: bytes) -> None:
    try:
        bodies.decode(data)
    except NotJson as error:
        assert error.http_status == 400  # noqa: PT017


async def test_without_the_front_end_the_page_says_how_to_get_it(tmp_path: Path) -> None:
    settings = EngineSettings(port=0, data_dir=tmp_path)
    nothing = FrontendFiles(None, None, None)
    async with (
        running_engine(settings, frontend=nothing) as running,
        aiohttp.ClientSession(running.url) as session,
    ):
        async with session.get("/") as response:
            assert response.status == 200
            assert "pip install" in await response.text()
        async with session.get("/extensions") as response:
            assert await response.json() == []
        async with session.get("/scripts/app.js") as response:
            assert response.status == 404


async def test_packs_bring_scripts_translations_and_templates(tmp_path: Path) -> None:
    for pack, word in (("a", "one"), ("b", "two"), (".hidden", "x"), ("c.disabled", "x")):
        folder = tmp_path / "base" / "custom_nodes" / pack
        (folder / "locales" / "en").mkdir(parents=True)
        (folder / "locales" / "en" / "main.json").write_text(json.dumps({pack: word, "k": [word]}))
        (folder / "locales" / "en" / "commands.json").write_text('{"run": "Run"}')
        (folder / "locales" / "de").mkdir()
        (folder / "locales" / "de" / "main.json").write_text("{damaged")
        (folder / "web" / "deep").mkdir(parents=True)
        (folder / "web" / "deep" / "x.js").write_text("1")
        (folder / "example_workflows").mkdir()
        (folder / "example_workflows" / "w.json").write_text("{}")
    async with (
        engine(tmp_path / "base") as running,
        aiohttp.ClientSession(running.url) as session,
    ):
        async with session.get("/api/i18n") as response:
            merged = {"a": "one", "b": "two", "k": ["one", "two"], "commands": {"run": "Run"}}
            assert await response.json() == {"en": merged}
        async with session.get("/workflow_templates") as response:
            assert await response.json() == {"a": ["w"], "b": ["w"]}
        async with session.get("/extensions") as response:
            own = [
                name for name in await response.json() if not name.startswith("/extensions/core")
            ]
            assert own == ["/extensions/a/deep/x.js", "/extensions/b/deep/x.js"]
        for path in (*own, "/api/workflow_templates/a/w.json"):
            async with session.get(path) as response:
                assert response.status == 200
        async with session.get("/extensions/a/%2e%2e/locales/en/main.json") as response:
            assert response.status in (403, 404)


async def test_it_says_what_it_is(session: aiohttp.ClientSession) -> None:
    async with session.get("/system_stats") as response:
        system = (await response.json())["system"]
    assert system["comfyui_version"] == "0.3.64"
    assert system["engine"] == "easel built-in"


@pytest.mark.parametrize("pack", ["no.such.module:registry", "json:registry", "json:loads", ""])
def test_packs_that_cannot_be_loaded(pack: str) -> None:
    with pytest.raises(ConfigurationError, match="node pack"):
        load_registry((pack,))


async def test_a_taken_port_is_named(running: RunningEngine, tmp_path: Path) -> None:
    settings = EngineSettings(port=running.port, data_dir=tmp_path / "other")
    with pytest.raises(ConfigurationError, match=str(running.port)):
        async with running_engine(settings):
            pass


async def test_a_data_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match="data directory"):
        async with running_engine(EngineSettings(port=0, data_dir=tmp_path / "file")):
            pass
