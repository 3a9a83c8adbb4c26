"""Local servers to fetch from: well-behaved and not."""

from __future__ import annotations

import asyncio
import io
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from PIL import Image

from easel.agent.fetch import Fetcher
from easel.settings import InputSettings

LOOPBACK = ("127.0.0.1/32",)
"""Only this loopback address is allowed: 127.0.0.2 and the rest of 127/8 stand for the operator's network."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
RawHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def settings(**changes: Any) -> InputSettings:
    return InputSettings(**{"allow_private": LOOPBACK, "fetch_timeout": 20, **changes})


@asynccontextmanager
async def serve(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """Serve every path with one handler and yield the base URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, 0)
        await site.start()
        assert runner.addresses
        yield f"http://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serve_raw(handler: RawHandler) -> AsyncIterator[str]:
    """Serve bytes as they are: for what no HTTP library would send."""
    open_writers: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_writers.add(writer)
        try:
            await reader.readuntil(b"\r\n\r\n")
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in open_writers:
            writer.transport.abort()


class FakeNames(AbstractResolver):
    """A resolver whose answers the test chooses; each call takes the next list, the last stays."""

    def __init__(self, **hosts: list[list[str]]) -> None:
        self._hosts = {name.replace("_", "."): list(answers) for name, answers in hosts.items()}
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        answers = self._hosts.get(host)
        if not answers:
            raise OSError(f"no such host: {host}")
        chosen = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in chosen
        ]

    async def close(self) -> None:
        pass


async def fetched(
    url: str, config: InputSettings | None = None, lookup: AbstractResolver | None = None
) -> bytes:
    """Fetch a URL into memory."""
    content = bytearray()

    async def sink(chunk: bytes) -> None:
        content.extend(chunk)

    fetcher = Fetcher(config or settings(), lookup)
    try:
        await fetcher.fetch(url, sink)
    finally:
        await fetcher.close()
    return bytes(content)


def picture(
    size: tuple[int, int] = (16, 12), picture_format: str = "PNG", color: Any = (200, 30, 60)
) -> bytes:
    """Encode a small picture with some detail in it."""
    image = Image.new("RGB", size, color)
    for x in range(size[0]):
        image.putpixel((x, x % size[1]), (x * 7 % 256, 255 - x % 256, 90))
    out = io.BytesIO()
    image.save(out, picture_format)
    return out.getvalue()


def png_bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A few hundred bytes that claim to be an enormous picture."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def files_below(folder: Path) -> list[str]:
    """List every file below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
