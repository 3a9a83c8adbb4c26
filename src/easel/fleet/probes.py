"""Asks health checks: an HTTP GET, a TCP connection, or a command (eas-and-fc.md F.7)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from yarl import URL

from easel.services.model import HealthCheck, Mount
from easel.services.script import realise

MOST_OUTPUT = 4096
"""Bytes of a command's output that are looked at."""
OWN_HOST = r"(?<![\w.-])(?:localhost|127\.0\.0\.1|0\.0\.0\.0)"
"""Names by which a command in a container calls the engine beside it."""
WITHHELD = ("EASEL_", "PGPASS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is asked: an instance's engine."""

    url: str
    """Where this process reaches it."""
    here: bool
    """Whether it runs on this machine: commands and other ports can be asked here alone."""
    port: int
    """The port that the service's texts mean by the engine."""
    mounts: Sequence[Mount] = ()
    env: Mapping[str, str] | None = None


class Ask(Protocol):
    """Asks a check once."""

    async def __call__(self, check: HealthCheck, subject: Subject) -> str | None:
        """Return in words what is wrong, None when it passes. Raises nothing but CancelledError."""


class Asker:
    """The `Ask` of real engines. Close it when it is not needed any more."""

    def __init__(self) -> None:
        self._http: aiohttp.ClientSession | None = None

    async def __call__(self, check: HealthCheck, subject: Subject) -> str | None:
        """Ask one check, for at most its ``timeout_seconds``."""
        try:
            async with asyncio.timeout(check.timeout_seconds):
                if check.command:
                    return await _execute(check, subject) if subject.here else None
                if check.path is not None:
                    return await self._get(check, subject)
                return await _connect(check, subject)
        except TimeoutError:
            return f"no answer within {check.timeout_seconds:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"

    async def close(self) -> None:
        """Close connections."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def _get(self, check: HealthCheck, subject: Subject) -> str | None:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                # A connection for each asking: an old one that still answers says nothing of new ones.
                connector=aiohttp.TCPConnector(force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        base = _where(check, subject)
        url = base.join(URL(check.path or "/", encoded=True))
        async with self._http.get(url, allow_redirects=False, ssl=False) as answer:
            good = 200 <= answer.status < 400
            return None if good else f"GET {url.path_qs} answered {answer.status}"


async def _connect(check: HealthCheck, subject: Subject) -> str | None:
    url = _where(check, subject)
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return None


async def _execute(check: HealthCheck, subject: Subject) -> str | None:
    port = URL(subject.url).port or 0
    own = re.compile(rf"{OWN_HOST}:{subject.port}(?!\d)")
    words = [
        realise(own.sub(f"127.0.0.1:{port}", word), subject.mounts, subject.port, port)
        for word in check.command
    ]
    # The platform's own settings are not for a service's commands.
    env = {name: value for name, value in os.environ.items() if not name.startswith(WITHHELD)}
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**env, **(subject.env or {}), "PORT": str(port)},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        said = await process.stdout.read(MOST_OUTPUT)
        while await process.stdout.read(1 << 16):
            pass
        code = await process.wait()
    finally:
        # It, and what it left behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            await asyncio.shield(process.wait())
    if code == 0:
        return None
    last = said.decode(errors="replace").strip().splitlines()
    return f"{words[0]} ended with {code}" + (f": {last[-1][:200]}" if last else "")


def _where(check: HealthCheck, subject: Subject) -> URL:
    """Return the base URL that a check means: the instance's own port stands for the service's."""
    url = URL(subject.url)  # an engine speaks HTTP, whatever its container's TLS was
    if check.port is not None and check.port != subject.port and subject.here:
        return url.with_port(check.port).with_scheme(check.scheme)
    return url
