"""ComfyUI's own pages below a path: the slash at its end, signed links, and the few files its front end asks of the root."""

from __future__ import annotations

import asyncio
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from easel.gateway import errors
from easel.gateway.auth import Caller
from easel.gateway.links import COOKIE, split_query
from easel.gateway.request import Head

ROOT_FILES = ("/assets/favicon.ico", "/assets/images/")
"""Paths that the front end asks of the root wherever it is served (libraries.md h). The same for all: nobody is asked for."""


def is_navigation(head: Head) -> bool:
    """Tell whether a browser opens a page."""
    return head.method in ("GET", "HEAD") and head.accepts(b"text/html")


async def add_slash(send: Send, head: Head, service: str) -> int:
    """Send a browser to the same address with a slash; relative, so that proxies before us need not be known."""
    target = f"./{service}/".encode("ascii", "replace")
    if head.query:
        target += b"?" + head.query
    return await _redirect(send, head, target)


def take_link(head: Head) -> str:
    """Take a signed link's proof out of the address; returns what is left of the query."""
    if head.scope["type"] != "http" or head.method != "GET":
        return ""
    head.link, rest = split_query(head.query)
    return rest


async def enter(
    send: Send, head: Head, caller: Caller, prefix: str, query: str, *, secure: bool
) -> int:
    """Give a browser the cookie for its link, and send it on to the address without the proof."""
    assert head.link is not None
    assert caller.seconds_left is not None
    attributes = [
        f"{COOKIE}{caller.service}={head.link}",
        f"Path={prefix}/",
        f"Max-Age={int(caller.seconds_left)}",
        "HttpOnly",
        "SameSite=Lax",
    ]
    if secure:
        attributes.append("Secure")
    # "./" before it: what follows is never taken for a scheme or a host.
    target = b"./" + head.raw_path.rpartition(b"/")[2] + (b"?" + query.encode() if query else b"")
    cookie = "; ".join(attributes).encode("latin-1")
    return await _redirect(send, head, target, [(b"set-cookie", cookie)])


async def _redirect(
    send: Send, head: Head, target: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> int:
    more = [(b"location", target), (b"referrer-policy", b"no-referrer"), *(headers or [])]
    return await errors.answer(send, head, 303, b"", errors.TEXT, more)


@cache
def _pages() -> Path | None:
    """Where the front end's package keeps its files, if it is installed."""
    spec = find_spec("comfyui_frontend_package")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        return Path(location) / "static"
    return None


def _file(path: str) -> Path | None:
    pages = _pages()
    if pages is None or "\0" in path:
        return None
    root = (pages / "assets").resolve()
    found = (pages / path.lstrip("/")).resolve()
    return found if found.is_relative_to(root) and found.is_file() else None


async def root_file(scope: Scope, receive: Receive, send: Send) -> int:
    """Answer one of `ROOT_FILES`."""
    head = Head(scope)
    found = await asyncio.to_thread(_file, scope["path"])
    if found is None or head.method not in ("GET", "HEAD"):
        return await errors.answer(send, head, 404, b"", errors.TEXT)
    await FileResponse(found, headers={"Cache-Control": "max-age=3600"})(scope, receive, send)
    return 200
