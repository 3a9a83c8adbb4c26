"""One TCP connection to the engine, carried over a WebSocket that the agent dials."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl

import aiohttp
from aiohttp import WSMsgType
from yarl import URL

from easel.link import messages

log = logging.getLogger(__name__)

PIECE = 64 * 1024
"""Bytes read from the engine at a time."""
CONNECT_TIMEOUT = 10.0
HEARTBEAT = 30.0
NO_ENGINE = 1011
"""Close code of a tunnel whose engine cannot be reached."""


async def carry(http: aiohttp.ClientSession, tunnel_url: str, engine_url: str) -> None:
    """Connect the tunnel and the engine, and pass bytes both ways until either closes.

    Either side is read only as quickly as the other takes it.
    """
    engine = URL(engine_url)
    secure = ssl.create_default_context() if engine.scheme == "https" else None
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            socket = await http.ws_connect(
                tunnel_url,
                max_msg_size=messages.MAX_MESSAGE,
                heartbeat=HEARTBEAT,
                timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
            )
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        log.warning("a tunnel could not be opened: %s", error)
        return
    async with socket:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                reader, writer = await asyncio.open_connection(engine.host, engine.port, ssl=secure)
        except (OSError, TimeoutError) as error:
            log.info("a tunnel finds no engine: %s", error)
            await socket.close(code=NO_ENGINE, message=b"the engine cannot be reached")
            return
        await _pump(socket, reader, writer)


async def _pump(
    socket: aiohttp.ClientWebSocketResponse[bool],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    ways = [
        asyncio.create_task(_to_engine(socket, writer)),
        asyncio.create_task(_from_engine(reader, socket)),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in ways:
            one.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _to_engine(
    socket: aiohttp.ClientWebSocketResponse[bool], writer: asyncio.StreamWriter
) -> None:
    while (message := await socket.receive()).type in (WSMsgType.BINARY, WSMsgType.TEXT):
        if message.type is WSMsgType.BINARY:
            writer.write(message.data)
            await writer.drain()


async def _from_engine(
    reader: asyncio.StreamReader, socket: aiohttp.ClientWebSocketResponse[bool]
) -> None:
    while data := await reader.read(PIECE):
        await socket.send_bytes(data)
