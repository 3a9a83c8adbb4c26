"""One TCP connection to the engine, carried over a WebSocket that the agent dials."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import aiohttp
from aiohttp import WSMsgType
from yarl import URL

from easel.link import messages

log = logging.getLogger(__name__)

PIECE = 64 * 1024
CONNECT_TIMEOUT = 10.0


async def carry(http: aiohttp.ClientSession, tunnel_url: str, engine_url: str) -> None:
    """Connect the tunnel and the engine, and pass bytes both ways until either closes."""
    engine = URL(engine_url)
    try:
        async with http.ws_connect(tunnel_url, max_msg_size=messages.MAX_MESSAGE) as socket:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    reader, writer = await asyncio.open_connection(engine.host, engine.port)
            except (OSError, TimeoutError) as error:
                log.info("a tunnel finds no engine: %s", error)
                return
            up = asyncio.create_task(_to_engine(socket, writer))
            down = asyncio.create_task(_from_engine(reader, socket))
            try:
                await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in (up, down):
                    one.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (aiohttp.ClientError, OSError) as error:
        log.info("a tunnel broke: %s", error)


async def _to_engine(socket: aiohttp.ClientWebSocketResponse, writer: asyncio.StreamWriter) -> None:
    async for message in socket:
        if message.type is WSMsgType.BINARY:
            writer.write(message.data)
            await writer.drain()


async def _from_engine(
    reader: asyncio.StreamReader, socket: aiohttp.ClientWebSocketResponse
) -> None:
    while data := await reader.read(PIECE):
        await socket.send_bytes(data)
