"""Listening on a port, as engine and agent both do."""

from __future__ import annotations

import socket

from aiohttp import web

from easel.errors import ConfigurationError

BACKLOG = 1024


async def listen(runner: web.AppRunner, host: str, port: int) -> int:
    """Start to listen and return the port (the one taken, where 0 was asked for).

    Raises ConfigurationError when the address cannot be used.
    """
    try:
        await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="another program has the port; choose one with --port, 0 takes a free one",
        ) from error
    found: int = runner.addresses[0][1]
    return found


def local_url(host: str, port: int) -> str:
    """Return the URL under which a listener is reached from this machine."""
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_free(host: str, port: int) -> bool:
    """Tell whether a port can be listened on now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
