"""Who may call from a browser: the Origin rule, or one allowed origin; and caching headers.

Protocol source: comfyui.md §4. With a loopback ``Host``, a request whose ``Origin`` is another host gets 403, so that no web
page can drive an engine on the visitor's own machine.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from easel.engine.server.errors import Handler

log = logging.getLogger(__name__)

ResponseHook = Callable[[web.Request, web.StreamResponse], Awaitable[None]]

HOSTS_FILE = Path("/etc/hosts")
HOUR = 3600
DAY = 86400
PICTURES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def loopback_names(hosts_file: Path = HOSTS_FILE) -> frozenset[str]:
    """Read which names this machine's hosts file gives to loopback addresses.

    The real one asks the resolver for every Host a caller sends; a hosts file needs no network.
    """
    names = {"localhost"}
    try:
        lines = hosts_file.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset(names)
    for line in lines:
        address, *aliases = line.partition("#")[0].split() or [""]
        try:
            if ipaddress.ip_address(address).is_loopback:
                names.update(alias.lower() for alias in aliases)
        except ValueError:
            continue
    return frozenset(names)


def is_loopback(host: str | None, names: frozenset[str]) -> bool:
    """Tell whether a host name or address means this machine."""
    if not host:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in names or host.endswith(".localhost")


def foreign(host: str, origin: str, names: frozenset[str]) -> bool:
    """Tell whether a request with these headers must be refused. An unreadable header is foreign."""
    try:
        here = urlsplit("//" + host.lower())
        there = urlsplit(origin.lower())
        here_port, there_port = here.port, there.port
    except ValueError:
        return True
    if not is_loopback(here.hostname, names):
        return False
    here_name, there_name = here.netloc, there.netloc
    if here_port is None or there_port is None:  # some browsers leave the port out
        here_name, there_name = here.hostname or "", there.hostname or ""
    return bool(here_name and there_name) and here_name != there_name


def origin_rule(names: frozenset[str]) -> Middleware:
    """Refuse foreign origins on loopback, on every path, the socket and static files included."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        host, origin = request.headers.get("Host"), request.headers.get("Origin")
        if host is not None and origin is not None and foreign(host, origin, names):
            log.warning("request with host %s and origin %s refused", host, origin)
            return web.Response(status=403)
        return await handler(request)

    return check


@web.middleware
async def answer_options(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer OPTIONS on any path with an empty 200."""
    if request.method == "OPTIONS":
        return web.Response()
    return await handler(request)


def allow_origin(origin: str) -> ResponseHook:
    """Put the headers of ``--enable-cors-header`` on every answer."""

    async def add(_: web.Request, response: web.StreamResponse) -> None:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Allow-Methods"] = "POST, GET, DELETE, PUT, OPTIONS"
        response.headers["Access-Control-Allow-Headers"] = "Content-Type, Authorization"
        response.headers["Access-Control-Allow-Credentials"] = "true"

    return add


async def cache_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Scripts and styles are asked for anew, pictures by path are kept a day (a missing one an hour)."""
    path = request.path
    name = path.rsplit("/", 1)[-1]
    if path.endswith((".js", ".css")) or (name.startswith("index") and name.endswith(".json")):
        response.headers.setdefault("Cache-Control", "no-cache")
    elif path.lower().endswith(PICTURES):
        if response.status == 404:
            response.headers.setdefault("Cache-Control", f"public, max-age={HOUR}")
        elif 200 <= response.status < 207 or response.status in (301, 308):
            response.headers.setdefault("Cache-Control", f"public, max-age={DAY}")
