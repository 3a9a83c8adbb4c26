"""/upload, /view, /userdata, /settings: names, races, broken content."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from yarl import URL

from easel.engine.folders import Folders
from easel.engine.serve import RunningEngine
from easel.engine.server.errors import EmptyAnswer
from easel.engine.server.view import find
from tests.engine.engines import engine


def picture(mode: str = "RGB", size: tuple[int, int] = (6, 4), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 128 if mode in ("L", "P") else None or 0).save(buffer, format=kind)
    return buffer.getvalue()


def form(content: bytes, filename: str, **fields: str) -> aiohttp.FormData:
    data = aiohttp.FormData(quote_fields=False)
    data.add_field("image", content, filename=filename)
    for name, value in fields.items():
        data.add_field(name, value)
    return data


async def post(session: aiohttp.ClientSession, path: str, **arguments: Any) -> tuple[int, Any]:
    async with session.post(path, **arguments) as response:
        body = await response.read()
        return response.status, json.loads(body) if body else None


def below(running: RunningEngine, *parts: str) -> Path:
    return running.state.folders.base.joinpath(*parts)


async def test_uploads_of_one_name_at_once_all_survive(
    running: RunningEngine, session: aiohttp.ClientSession
) -> None:
    contents = [f"content {n}".encode() for n in range(20)]
    answers = await asyncio.gather(
        *(post(session, "/upload/image", data=form(content, "same.bin")) for content in contents)
    )
    names = {answer["name"] for _, answer in answers}
    assert len(names) == 20
    stored = {below(running, "input", name).read_bytes() for name in names}
    assert stored == set(contents)
    assert {path.name for path in below(running, "input").iterdir()} == names


async def test_fields_may_come_after_the_file(
    running: RunningEngine, session: aiohttp.ClientSession
) -> None:
    status, answer = await post(
        session, "/upload/image", data=form(b"x", "late.bin", subfolder="a/b", type="temp")
    )
    assert (status, answer) == (200, {"name": "late.bin", "subfolder": "a/b", "type": "temp"})
    assert below(running, "temp", "a", "b", "late.bin").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("filename", "fields"),
    [
        ("..", {}),
        (".", {}),
        ("x" * 300, {}),
        ("x.png", {"subfolder": "x" * 300}),
        ("x.png", {"subfolder": "/etc"}),
        ("x.png", {"type": "../output"}),
        ("folder", {"overwrite": "true"}),
        ("x.png", {"subfolder": "file.txt"}),
    ],
)
async def test_odd_upload_names_are_refused_and_leave_nothing(
    running: RunningEngine, session: aiohttp.ClientSession, filename: str, fields: dict[str, str]
) -> None:
    below(running, "input", "folder").mkdir()
    below(running, "input", "file.txt").write_text("x")
    status, _ = await post(session, "/upload/image", data=form(b"x", filename, **fields))
    assert status == 400
    assert {p.name for p in below(running, "input").rglob("*")} == {"folder", "file.txt"}
    status, _ = await post(session, "/upload/image", data=form(b"x", "next.png"))
    assert status == 200


async def test_bodies_that_are_no_form(session: aiohttp.ClientSession) -> None:
    assert (await post(session, "/upload/image", json={"image": 1}))[0] == 400
    headers = {"Content-Type": "multipart/form-data; boundary=xyz"}
    status, answer = await post(session, "/upload/image", data=b"nonsense", headers=headers)
    assert status == 400
    many = aiohttp.FormData()
    for number in range(100):
        many.add_field(f"f{number}", "x", filename="x.bin")
    status, answer = await post(session, "/upload/image", data=many)
    assert (status, answer["error"]["type"]) == (400, "bad_request")


async def test_too_long_bodies_are_refused_unread_and_the_next_request_is_served(
    tmp_path: Path,
) -> None:
    async with (
        engine(tmp_path / "base", max_upload_bytes=100_000) as running,
        aiohttp.ClientSession(running.url) as session,
    ):
        for path in ("/prompt", "/upload/image", "/settings", "/userdata/x.json"):
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(
                f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n"
                "Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode()
            )
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            assert answer.startswith(b"HTTP/1.1 413 "), path
            writer.close()
            await writer.wait_closed()
        status, answer_json = await post(session, "/prompt", data=b"[" + b"1," * 100_000)
        assert (status, answer_json["error"]["type"]) == (413, "body_too_large")

        async def endless() -> Any:
            for _ in range(64):
                yield b"x" * 4096

        status, answer_json = await post(session, "/prompt", data=endless())
        assert (status, answer_json["error"]["type"]) == (413, "body_too_large")
        data = form(b"x" * 150_000, "long.bin")
        status, answer_json = await post(session, "/upload/image", data=data)
        assert (status, answer_json["error"]["type"]) == (413, "body_too_large")
        assert not list((tmp_path / "base" / "input").iterdir())
        assert (await post(session, "/upload/image", data=form(b"x", "ok.bin")))[0] == 200


async def test_mask_keeps_the_originals_colours_and_text(
    running: RunningEngine, session: aiohttp.ClientSession
) -> None:
    await post(session, "/upload/image", data=form(picture(), "pic.png"))
    reference = json.dumps({"filename": "pic.png", "type": "input"})
    status, answer = await post(
        session, "/upload/mask", data=form(picture("RGBA"), "m.png", original_ref=reference)
    )
    assert status == 200
    with Image.open(below(running, "input", answer["name"])) as image:
        assert image.mode == "RGBA"
        assert image.getpixel((0, 0)) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "reference",
    ["", "{", "[]", '{"filename": 3}', '{"filename": "../x.png"}', '{"filename": "none.png"}'],
)
async def test_masks_of_nothing_are_refused(session: aiohttp.ClientSession, reference: str) -> None:
    data = form(picture("RGBA"), "m.png", original_ref=reference)
    status, answer = await post(session, "/upload/mask", data=data)
    assert status == 400
    assert answer["error"]["type"] in ("bad_request", "not_json")


async def test_view_ranges_and_validators(
    running: RunningEngine, session: aiohttp.ClientSession
) -> None:
    below(running, "output", "a.bin").write_bytes(bytes(range(100)))
    url = "/view?filename=a.bin"
    async with session.get(url) as response:
        assert response.headers["Accept-Ranges"] == "bytes"
        tag, when = response.headers["ETag"], response.headers["Last-Modified"]
    async with session.get(url, headers={"If-None-Match": tag}) as response:
        assert (response.status, await response.read()) == (304, b"")
    async with session.get(url, headers={"If-Modified-Since": when}) as response:
        assert response.status == 304
    async with session.get(url, headers={"Range": "bytes=90-"}) as response:
        assert response.status == 206
        assert response.headers["Content-Range"] == "bytes 90-99/100"
        assert await response.read() == bytes(range(90, 100))
    async with session.get(url, headers={"Range": "bytes=500-"}) as response:
        assert response.status == 416
    async with session.head(url) as response:
        assert (response.status, response.content_length) == (200, 100)


@pytest.mark.parametrize("name", ["x.html", "x.js", "x.css", "x.xhtml"])
async def test_what_would_run_in_the_browser_is_downloaded(
    running: RunningEngine, session: aiohttp.ClientSession, name: str
) -> None:
    below(running, "output", name).write_text("<script>")
    async with session.get(f"/view?filename={name}") as response:
        assert response.content_type == "application/octet-stream"


async def test_odd_names_in_the_disposition(
    running: RunningEngine, session: aiohttp.ClientSession
) -> None:
    name = 'q"u\\o\r\nX-Evil: 1é.png'
    below(running, "output", name).write_bytes(picture())
    async with session.get("/view", params={"filename": name}) as response:
        assert response.status == 200
        assert "X-Evil" not in response.headers


@pytest.mark.parametrize("query", ["preview=webp;90", "channel=rgb", "channel=a", "preview=jpeg"])
async def test_broken_pictures_and_bombs_are_refused(
    running: RunningEngine, session: aiohttp.ClientSession, query: str
) -> None:
    whole = picture(size=(600, 400))
    bomb = bytearray(picture())
    bomb[16:24] = (60_000).to_bytes(4) * 2  # width and height in the header
    for name, content in (("text", b"hello"), ("cut", whole[:60]), ("bomb", bytes(bomb))):
        below(running, "output", f"{name}.png").write_bytes(content)
        async with session.get(f"/view?filename={name}.png&{query}") as response:
            assert response.status == 400, name
            assert (await response.json())["error"]["type"] == "not_a_picture"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16", "CMYK", "F"])
async def test_every_kind_of_picture_has_a_preview(
    running: RunningEngine, session: aiohttp.ClientSession, mode: str
) -> None:
    path = below(running, "output", "a.tiff")
    Image.new(mode, (6, 4)).save(path)
    for query in ("preview=webp", "preview=jpeg;500", "channel=rgb", "channel=a"):
        async with session.get(f"/view?filename=a.tiff&{query}") as response:
            assert response.status == 200, query
            with Image.open(io.BytesIO(await response.read())) as shown:
                assert shown.size == (6, 4)


NAMES = st.text(st.sampled_from("a.b/\\%\0 é~$"), max_size=12)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES, subfolder=NAMES)
def test_view_never_leaves_its_folder(tmp_path: Path, name: str, subfolder: str) -> None:
    base = tmp_path / "base"
    (base / "output").mkdir(parents=True, exist_ok=True)
    (tmp_path / "a").write_text("secret")
    with contextlib.suppress(EmptyAnswer):
        assert base / "output" in find(Folders(base), name, "output", subfolder).parents


async def test_a_link_out_of_the_folder_is_not_followed(
    running: RunningEngine, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("x")
    below(running, "output", "link").symlink_to(tmp_path / "secret")
    async with session.get("/view?filename=link") as response:
        assert response.status == 403


async def test_no_setting_is_lost_when_many_are_set_at_once(
    session: aiohttp.ClientSession,
) -> None:
    async def set_one(number: int) -> int:
        return (await post(session, f"/settings/s{number}", json=number))[0]

    assert set(await asyncio.gather(*map(set_one, range(40)))) == {200}
    async with session.get("/settings") as response:
        assert await response.json() == {f"s{n}": n for n in range(40)}


async def test_damaged_settings_are_taken_as_empty(
    running: RunningEngine, session: aiohttp.ClientSession
) -> None:
    file = below(running, "user", "default", "comfy.settings.json")
    file.parent.mkdir(parents=True)
    file.write_text("{damaged")
    async with session.get("/settings") as response:
        assert await response.json() == {}
    for odd in ("[1]", "x", ""):
        assert (await post(session, "/settings", data=odd))[0] == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/userdata/..%2Fsecret", 403),
        ("POST", "/userdata/..%2F..%2Fx", 403),
        ("POST", "/userdata/%252e%252e%2Fx", 403),
        ("DELETE", "/userdata/..%2Fsecret", 403),
        ("POST", "/userdata/a/move/..%2Fb", 403),
        ("POST", "/userdata/.", 400),
        ("DELETE", "/userdata/folder", 400),
        ("GET", "/userdata/folder", 404),
        ("POST", "/userdata/folder", 400),
        ("POST", "/userdata/nothing/move/x", 404),
        ("POST", "/userdata/a%2Fb", 400),
        ("GET", "/userdata?dir=..%2F..", 403),
        ("GET", "/v2/userdata?path=..%2F..", 400),
        ("GET", "/v2/userdata?path=a", 400),
        ("GET", "/v2/userdata?path=none", 404),
    ],
)
async def test_userdata_names(
    running: RunningEngine,
    session: aiohttp.ClientSession,
    method: str,
    path: str,
    status: int,
) -> None:
    root = below(running, "user", "default")
    (root / "folder" / "full").mkdir(parents=True)
    (root / "a").write_text("kept")
    below(running, "user", "secret").write_text("secret")
    async with session.request(
        method, URL(running.url + path, encoded=True), data=b"new"
    ) as response:
        assert response.status == status
    assert (root / "a").read_text() == "kept"
    assert below(running, "user", "secret").read_text() == "secret"


async def test_users_are_apart(tmp_path: Path) -> None:
    async with (
        engine(tmp_path / "base", multi_user=True) as running,
        aiohttp.ClientSession(running.url) as session,
    ):
        _, alice = await post(session, "/users", json={"username": "Alice Ünder"})
        _, bob = await post(session, "/users", json={"username": "Bob"})
        for odd in ({"username": "Bob"}, {"username": 3}, {}, {"username": "   "}):
            assert (await post(session, "/users", json=odd))[0] == 400
        for user in (alice, bob):
            headers = {"comfy-user": user}
            await post(session, "/settings/name", json=user, headers=headers)
            await post(session, "/userdata/a.txt", data=user.encode(), headers=headers)
        for user in (alice, bob):
            async with session.get("/settings/name", headers={"comfy-user": user}) as response:
                assert await response.json() == user
            async with session.get("/userdata/a.txt", headers={"comfy-user": user}) as response:
                assert await response.text() == user
        escape = {"comfy-user": f"{alice}/../{bob}"}
        async with session.get("/settings", headers=escape) as response:
            assert response.status == 401
    async with (
        engine(tmp_path / "base", multi_user=True) as running,
        aiohttp.ClientSession(running.url) as session,
        session.get("/users") as response,
    ):
        assert set((await response.json())["users"]) == {alice, bob}
