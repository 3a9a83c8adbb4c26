"""Connections on which nothing is asked: aiohttp waits for the head of a first request for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from easel.agent.origins import Handler

TIMEOUT = 30.0
"""Seconds from the connection to the end of its first request's head, at least; one look more at most."""
LOOK = 5.0
"""Seconds between two looks at the connections."""


class FirstRequests:
    """Closes connections whose first request does not come; the rest is left to keep-alive."""

    def __init__(self) -> None:
        self._heard: set[web.RequestHandler] = set()

    def middleware(self) -> Any:
        """Return the middleware that notes which connections have asked something."""

        @web.middleware
        async def hear(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._heard.add(request.protocol)
            return await handler(request)

        return hear

    async def watch(self, server: web.Server) -> None:
        """Look at the server's connections, for ever."""
        silent: dict[web.RequestHandler, float] = {}
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK)
            connected = set(server.connections)
            self._heard &= connected
            now = loop.time()
            silent = {one: silent.get(one, now) for one in connected - self._heard}
            for one, since in silent.items():
                if now - since >= TIMEOUT:
                    one.force_close()
