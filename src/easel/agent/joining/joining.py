"""What the settings say of joining a platform."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from yarl import URL

from easel.errors import ConfigurationError
from easel.settings import AgentSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """Which gateway an agent joins, and as what."""

    url: str
    """The gateway's, without a slash at its end."""
    token: str
    instance: str | None
    name: str
    shares_storage: bool
    """Whether outputs are written where the gateway reads them."""
    capacity: int
    """Tasks taken at a time."""
    engine_url: str | None
    agent_url: str | None
    device: str | None
    orphan_timeout: float | None


def read_joining(settings: AgentSettings, engine_url: str) -> Joining:
    """Return how the agent joins. Blocks. Raises ConfigurationError for a wrong URL, no token, or storage that is not there."""
    assert settings.join is not None
    url = URL(settings.join)
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigurationError(
            f"--join {settings.join!r} is not a gateway's URL", hint="such as http://gateway:8500"
        )
    if settings.storage is not None and not settings.storage.is_dir():
        raise ConfigurationError(
            f"the storage {settings.storage} is not there",
            hint="--storage names the service's data directory; without it, outputs are sent to the gateway",
        )
    reachable = settings.engine_reachable
    if reachable is None:
        reachable = _is_this_machine(url.host)
    return Joining(
        url=settings.join.rstrip("/"),
        token=read_token(settings),
        instance=settings.instance,
        name=settings.name,
        shares_storage=settings.storage is not None,
        capacity=settings.in_engine,
        engine_url=engine_url if reachable else None,
        agent_url=None,
        device=settings.device,
        orphan_timeout=settings.orphan_timeout,
    )


def read_token(settings: AgentSettings) -> str:
    """Return the token to join with. Blocks. Raises ConfigurationError."""
    token = settings.token or ""
    if settings.token_file is not None:
        try:
            token = settings.token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"the token file {settings.token_file} cannot be read: {error}"
            ) from error
    if not token:
        raise ConfigurationError(
            "no token to join with",
            hint="--token or --token-file; `easel join-token SERVICE` prints a service's",
        )
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigurationError("the token to join with is none: it has spaces or odd characters")
    return token


def output_folder(settings: AgentSettings) -> Path:
    """Return the folder below which outputs are stored: the service's storage, where it is at hand."""
    return settings.storage / "easel" if settings.storage is not None else settings.data_dir


def gateway_session(joining: Joining) -> aiohttp.ClientSession:
    """Return the client for everything that goes to the gateway: the link, tunnels, files."""
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {joining.token}"},
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=10.0),
    )


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
