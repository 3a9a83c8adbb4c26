"""File inputs of a prompt, from what a caller wrote to what the engine reads."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from easel.agent.input_files import FolderUploader, InputFiles
from easel.errors import EngineError, EngineUnavailable, InputRejected
from tests.agent.web import FakeNames, files_below, picture, png_bomb, serve, settings
from tests.conftest import FIXTURES


class Recorder(FolderUploader):
    """An uploader that counts, and fails when told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.uploaded: list[str] = []
        self.failing: EngineError | None = None

    async def upload(self, path: Path, name: str, media_type: str) -> str:
        if self.failing:
            raise self.failing
        self.uploaded.append(name)
        return await super().upload(path, name, media_type)


class Place:
    """InputFiles over temporary folders."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.input = root / "input"
        self.data = root / "data"
        self.uploader = Recorder(self.input)
        self.files = InputFiles(self.uploader, self.data, settings(**changes))

    async def run(self, *values: Any, class_type: str = "LoadImage", name: str = "image") -> Any:
        prompt: Any = {
            str(number): {"class_type": class_type, "inputs": {name: value}}
            for number, value in enumerate(values)
        }
        result = await self.files.materialise(prompt)
        return [result[node]["inputs"][name] for node in prompt]

    async def rejected(self, value: str, **where: str) -> InputRejected:
        """Bring in a value that must be refused, and see to it that nothing of it is left."""
        with pytest.raises(InputRejected) as caught:
            await self.run(value, **where)
        assert files_below(self.data) == []
        assert files_below(self.input) == []
        assert caught.value.node_id == "0"
        assert caught.value.node_type == where.get("class_type", "LoadImage")
        assert caught.value.input_name == where.get("name", "image")
        assert len(caught.value.message) < 600
        return caught.value


@asynccontextmanager
async def place(root: Path, **changes: Any) -> AsyncIterator[Place]:
    made = Place(root, **changes)
    await made.files.open()
    try:
        yield made
    finally:
        await made.files.close()


def uri(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def expected(content: bytes, extension: str) -> str:
    return f"easel/easel-{hashlib.sha256(content).hexdigest()[:32]}{extension}"


@pytest.mark.parametrize(
    ("picture_format", "extension"),
    [
        ("PNG", ".png"),
        ("JPEG", ".jpg"),
        ("WEBP", ".webp"),
        ("GIF", ".gif"),
        ("BMP", ".bmp"),
        ("TIFF", ".tiff"),
    ],
)
async def test_every_way_to_bring_a_picture(
    tmp_path: Path, picture_format: str, extension: str
) -> None:
    content = picture((30, 20), picture_format)
    plain = base64.b64encode(content).decode()

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=content, content_type="text/misleading")

    async with place(tmp_path) as here, serve(handler) as base:
        names = await here.run(
            f"{base}/whatever.exe?x=1",
            uri(content),
            f"  data:;charset=utf-8;BASE64,{plain}",
            "data:," + "".join(f"%{byte:02x}" for byte in content),
            uri(content).replace("+", "%2B").replace("=", "%3D"),
            plain,
            base64.urlsafe_b64encode(content).decode().rstrip("="),
            "\n" + base64.encodebytes(content).decode() + "\n",
        )
        assert set(names) == {expected(content, extension)}
        assert (here.input / names[0]).read_bytes() == content
        assert here.uploader.uploaded == [names[0]]
        assert files_below(here.data) == []
        assert files_below(here.input) == [names[0]]


async def test_a_prompt_without_files_is_returned_as_it_is(tmp_path: Path) -> None:
    prompt: Any = {"1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}}}
    async with place(tmp_path) as here:
        assert await here.files.materialise(prompt) is prompt


async def test_the_prompt_given_is_not_changed(tmp_path: Path) -> None:
    prompt: Any = {"1": {"class_type": "LoadImage", "inputs": {"image": uri(picture())}}}
    before = json.dumps(prompt)
    async with place(tmp_path) as here:
        after = await here.files.materialise(prompt)
    assert json.dumps(prompt) == before
    assert after["1"]["inputs"]["image"].startswith("easel/")


async def test_what_object_info_marks_is_an_input(tmp_path: Path) -> None:
    info = {"Mine": {"input": {"optional": {"pic": ["COMBO", {"image_upload": True}]}}}}
    prompt: Any = {
        "1": {"class_type": "Mine", "inputs": {"pic": uri(picture()), "text": "data:,x"}}
    }
    async with place(tmp_path) as here:
        assert await here.files.materialise(prompt) is prompt
        after = await here.files.materialise(prompt, info)
    assert after["1"]["inputs"] == {"pic": expected(picture(), ".png"), "text": "data:,x"}


async def test_the_same_content_is_stored_once_by_many_at_a_time(tmp_path: Path) -> None:
    content = picture((64, 64))
    async with place(tmp_path) as here:
        names = await asyncio.gather(*(here.run(uri(content)) for _ in range(20)))
        assert {name for (name,) in names} == {expected(content, ".png")}
        assert len(here.uploader.uploaded) == 1


async def test_who_waits_for_the_same_content_survives_the_first_ones_end(tmp_path: Path) -> None:
    started, release = asyncio.Event(), asyncio.Event()

    class Slow(Recorder):
        async def upload(self, path: Path, name: str, media_type: str) -> str:
            started.set()
            await release.wait()
            return await super().upload(path, name, media_type)

    here = Place(tmp_path)
    here.files = InputFiles(Slow(here.input), here.data, settings())
    await here.files.open()
    first = asyncio.create_task(here.run(uri(picture())))
    await started.wait()
    second = asyncio.create_task(here.run(uri(picture())))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    release.set()
    async with asyncio.timeout(10):
        (name,) = await second
    assert (here.input / name).is_file()
    assert files_below(here.data) == []
    await here.files.close()


async def test_an_emptied_input_folder_is_filled_again(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        (name,) = await here.run(uri(picture()))
        (here.input / name).unlink()
        assert await here.run(uri(picture())) == [name]
        assert (here.input / name).read_bytes() == picture()
        (here.input / name).write_bytes(b"torn")
        assert await here.run(uri(picture())) == [name]
        assert (here.input / name).read_bytes() == picture()
        assert len(here.uploader.uploaded) == 3


async def test_one_bad_file_keeps_the_others_out(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        with pytest.raises(InputRejected) as caught:
            await here.run(uri(picture()), uri(picture((9, 9))), uri(b"no picture"), "example.png")
        assert caught.value.node_id == "2"
        assert here.uploader.uploaded == []
        assert files_below(tmp_path) == []


async def test_an_input_folder_that_leads_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "input" / "easel").symlink_to(tmp_path / "elsewhere")
    async with place(tmp_path) as here:
        with pytest.raises(EngineError, match="cannot be written"):
            await here.run(uri(picture()))
    assert files_below(tmp_path) == []


async def test_an_engine_that_does_not_take_it(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        here.uploader.failing = EngineUnavailable("the engine is gone")
        with pytest.raises(EngineUnavailable):
            await here.run(uri(picture()), uri(picture((9, 9))))
        assert files_below(tmp_path) == []


async def test_a_cancelled_fetch_leaves_nothing(tmp_path: Path) -> None:
    written = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(40):
            await response.write(b"\x89PNG\r\n\x1a\n" * 16_000)
        written.set()
        await asyncio.Event().wait()
        return response

    async with place(tmp_path) as here, serve(handler) as base:
        task = asyncio.create_task(here.run(f"{base}/"))
        async with asyncio.timeout(10):
            await written.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert files_below(tmp_path) == []


async def test_what_a_dead_agent_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "data" / "incoming" / "abc.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    async with place(tmp_path):
        assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"hello", "not a picture"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b'{"error": "not found"}', "JSON"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\x1f\x8b\x08" + b"\0" * 40, "gzip"),
        (b"%PDF-1.7 " + b"x" * 90, "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "audio/wav"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 60, "damaged"),
        (b"GIF89a" + b"\xff" * 60, "damaged"),
        (b"BM" + b"\0" * 60, "damaged"),
        (b"II*\0" + b"\xff" * 60, "damaged"),
        (b"\0\0\0\x1cftypavif" + b"\0" * 60, ""),
    ],
)
async def test_what_is_no_picture(tmp_path: Path, content: bytes, words: str) -> None:
    async with place(tmp_path) as here:
        error = await here.rejected(uri(content))
        assert words in error.message


@pytest.mark.parametrize("picture_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
async def test_truncated_pictures(tmp_path: Path, picture_format: str, share: float) -> None:
    content = picture((200, 160), picture_format)
    async with place(tmp_path) as here:
        error = await here.rejected(uri(content[: int(len(content) * share)]))
        assert "damaged" in error.message


async def test_a_damaged_byte_in_a_png(tmp_path: Path) -> None:
    content = bytearray(picture((200, 160)))
    content[len(content) // 2] ^= 0xFF
    async with place(tmp_path) as here:
        await here.rejected(uri(bytes(content)))


@pytest.mark.parametrize("size", [(50_000, 50_000), (2_000_000_000, 1), (60_000, 3_000)])
async def test_decompression_bombs(tmp_path: Path, size: tuple[int, int]) -> None:
    async with place(tmp_path) as here:
        error = await here.rejected(uri(png_bomb(*size)))
        assert "pixels" in error.message
        assert "max_pixels" in str(error.hint)


async def test_the_pixel_limit_is_the_operators(tmp_path: Path) -> None:
    async with place(tmp_path, max_pixels=600) as here:
        await here.rejected(uri(picture((30, 21))))
        await here.run(uri(picture((30, 20))))


async def test_animations_are_pictures(tmp_path: Path) -> None:
    import io

    from PIL import Image

    frames = [Image.new("RGB", (40, 30), (shade, 0, 0)) for shade in range(0, 250, 25)]
    async with place(tmp_path) as here:
        for picture_format in ("GIF", "WEBP", "PNG"):
            out = io.BytesIO()
            frames[0].save(out, picture_format, save_all=True, append_images=frames[1:])
            await here.run(uri(out.getvalue()))
            await here.run(uri(out.getvalue()), class_type="LoadVideo", name="file")


async def test_files_over_the_limit(tmp_path: Path) -> None:
    content = picture((100, 100), "BMP")

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=content)

    async with place(tmp_path, max_bytes=len(content) - 1) as here, serve(handler) as base:
        for value in (
            uri(content),
            base64.b64encode(content).decode(),
            "data:," + "".join(f"%{byte:02X}" for byte in content),
            f"{base}/",
        ):
            assert "larger than" in (await here.rejected(value)).message


@pytest.mark.parametrize(
    "value",
    [
        "data:image/png;base64",
        "data:" + "x" * 3000 + ",y",
        "data:,",
        "data:image/png;base64,",
        "data:image/png;base64,====",
        "data:image/png;base64,AAAA*AAA",
        "data:image/png;base64,AAAAA",
        "data:image/png;base64,AA==AAAA",
        "data:image/png;base64,éééé",
        "A" * 65,
        "data:;base64," + "A" * 80 + "=" + "A" * 20,
        "ftp://example.com/x.png",
        "oss://bucket/x.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.2/x.png",
    ],
)
async def test_malformed_values(tmp_path: Path, value: str) -> None:
    async with place(tmp_path) as here:
        await here.rejected(value)


@pytest.mark.parametrize(
    "value",
    [
        "../x.png",
        "a/../../x.png",
        "..",
        "a/..",
        "a/.. /x.png",
        "/etc/passwd",
        "//host/share",
        "\\\\host\\share",
        "..\\x.png",
        "a\\b.png",
        "C:\\x.png",
        "c:x.png",
        "a\0b.png",
        "a\nb.png",
        "../x.png [output]",
        "../output/x.png[input]",
        "/etc/passwd [temp]",
        "a/..x[output]",
        "..x[temp]",
        "x" * 1025,
        "not base64! " * 1000,
    ],
)
@pytest.mark.parametrize(
    "where",
    [
        {"class_type": "LoadImage", "name": "image"},
        {"class_type": "LoadLatent", "name": "latent"},
        {"class_type": "VHS_LoadVideo", "name": "video"},
        {"class_type": "Load3D", "name": "model_file"},
    ],
)
async def test_names_that_leave_the_folder(
    tmp_path: Path, value: str, where: dict[str, str]
) -> None:
    async with place(tmp_path) as here:
        await here.rejected(value, **where)


@pytest.mark.parametrize(
    "value",
    ["x.png", "sub/x.png", "x.png [output]", "x [temp]", "a..b.png", "...", "é ü.png", "", "x[y]"],
)
async def test_names_inside_the_folder(tmp_path: Path, value: str) -> None:
    async with place(tmp_path) as here:
        assert await here.run(value) == [value]


async def test_names_in_load3ds_viewport_are_checked_too(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        with pytest.raises(InputRejected) as caught:
            await here.run({"image": "ok.png", "mask": "../../x"}, class_type="Load3D")
        assert caught.value.input_name == "image.mask"
        (value,) = await here.run(
            {"image": uri(picture()), "mask": "m.png", "recording": ""}, class_type="Load3D"
        )
        assert value == {"image": expected(picture(), ".png"), "mask": "m.png", "recording": ""}


WAV = b"RIFF\x2c\0\0\0WAVEfmt " + b"\0" * 32
MP4 = b"\0\0\0\x20ftypisom" + b"\0" * 40
MAGIC = {
    ".wav": WAV,
    ".mp3": b"ID3\x04\0" + b"\0" * 40,
    ".flac": b"fLaC" + b"\0" * 40,
    ".ogg": b"OggS" + b"\0" * 40,
    ".aac": b"\xff\xf1" + b"\0" * 40,
    ".m4a": b"\0\0\0\x20ftypM4A " + b"\0" * 40,
    ".aiff": b"FORM\0\0\0\x20AIFF" + b"\0" * 40,
    ".mp4": MP4,
    ".mov": b"\0\0\0\x14ftypqt  " + b"\0" * 40,
    ".webm": b"\x1aE\xdf\xa3\x9fB\x82\x84webm" + b"\0" * 40,
    ".mkv": b"\x1aE\xdf\xa3\x9fB\x82\x88matroska" + b"\0" * 40,
    ".avi": b"RIFF\x2c\0\0\0AVI LIST" + b"\0" * 40,
}


@pytest.mark.parametrize("extension", MAGIC)
async def test_audio_and_video_by_their_first_bytes(tmp_path: Path, extension: str) -> None:
    content = MAGIC[extension]
    async with place(tmp_path) as here:
        (name,) = await here.run(
            base64.b64encode(content + b"\0" * 20).decode(), class_type="LoadAudio", name="audio"
        )
        assert name.endswith(extension)
        video = extension in {".mp4", ".mov", ".webm", ".mkv", ".avi"}
        value = uri(content, "audio/x")
        if video:
            assert (await here.run(value, class_type="LoadVideo", name="file"))[0].endswith(
                extension
            )
        else:
            with pytest.raises(InputRejected, match="not video"):
                await here.run(value, class_type="LoadVideo", name="file")


async def test_models_go_where_load3d_looks(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"o cube\nv 0 0 0\n")

    where = {"class_type": "Load3D", "name": "model_file"}
    async with place(tmp_path) as here, serve(handler) as base:
        (glb,) = await here.run(uri(b"glTF\2\0\0\0" + b"\0" * 40), **where)
        (obj,) = await here.run(f"{base}/models/cube.OBJ?token=1", **where)
        (odd,) = await here.run(f"{base}/cube.php", **where)
    assert glb.startswith("3d/easel-")
    assert glb.endswith(".glb")
    assert (obj[:9], obj[-4:]) == ("3d/easel-", ".obj")
    assert (odd[:12], odd[-4:]) == ("easel/easel-", ".bin")


async def test_host_names_are_checked_through_the_whole_way(tmp_path: Path) -> None:
    names = FakeNames(cdn_test=[["127.0.0.2"]])
    files = InputFiles(Recorder(tmp_path), tmp_path / "data", settings(), lookup=names)
    await files.open()
    prompt: Any = {"7": {"class_type": "LoadImage", "inputs": {"image": "http://cdn.test:1/x.png"}}}
    with pytest.raises(InputRejected) as caught:
        await files.materialise(prompt)
    assert "node '7' (LoadImage), input 'image'" in caught.value.message
    assert caught.value.to_json()["hint"].endswith("agent.inputs.allow_private")
    await files.close()


async def test_a_large_file_is_streamed(tmp_path: Path) -> None:
    piece = b"RIFF\xff\xff\xff\x7fAVI LIST" + b"\7" * 100_000

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(60):
            await response.write(piece)
        return response

    async with place(tmp_path) as here, serve(handler) as base:
        (name,) = await here.run(f"{base}/film", class_type="LoadVideo", name="file")
        assert name == expected(piece * 60, ".avi")
        assert (here.input / name).stat().st_size == 60 * len(piece)


async def test_the_real_object_info_finds_the_inputs(tmp_path: Path) -> None:
    info = json.loads((FIXTURES / "object_info.json").read_text())
    prompt: Any = {
        "1": {"class_type": "LoadImage", "inputs": {"image": uri(picture())}},
        "2": {"class_type": "LoadImageMask", "inputs": {"image": uri(picture())}},
        "3": {"class_type": "LoadAudio", "inputs": {"audio": uri(WAV)}},
        "4": {"class_type": "LoadVideo", "inputs": {"file": uri(MP4)}},
        "5": {"class_type": "SaveImage", "inputs": {"filename_prefix": uri(WAV)}},
    }
    async with place(tmp_path) as here:
        after = await here.files.materialise(prompt, info)
        assert len(here.uploader.uploaded) == 3
    assert after["5"] == prompt["5"]
