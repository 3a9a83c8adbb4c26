"""What the settings say of joining a platform."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from yarl import URL

from easel.agent.command import EngineChoice
from easel.agent.joining.client import Joining, LinkClient
from easel.agent.link import EngineLink
from easel.agent.tasks import Tasks
from easel.errors import ConfigurationError
from easel.settings import AgentSettings


def output_folder(settings: AgentSettings) -> Path:
    """Return the folder below which outputs are stored: the service's storage, where it is at hand."""
    return settings.storage / "easel" if settings.storage is not None else settings.data_dir


def read_token(settings: AgentSettings) -> str:
    """Return the token to join with. Raises ConfigurationError."""
    token = settings.token
    if settings.token_file is not None:
        try:
            token = settings.token_file.read_text().strip()
        except OSError as error:
            raise ConfigurationError(
                f"the token file {settings.token_file} cannot be read: {error.strerror}"
            ) from error
    if not token:
        raise ConfigurationError(
            "no token to join with",
            hint="--token or --token-file; `easel join-token SERVICE` prints a service's",
        )
    return token


def join(
    settings: AgentSettings, choice: EngineChoice, tasks: Tasks, link: EngineLink
) -> LinkClient:
    """Return the client that makes the agent an instance. Raises ConfigurationError."""
    assert settings.join is not None
    url = URL(settings.join)
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigurationError(
            f"--join {settings.join!r} is not a gateway's URL", hint="such as http://gateway:8500"
        )
    reachable = settings.engine_reachable
    if reachable is None:
        reachable = _is_this_machine(url.host)
    joining = Joining(
        url=settings.join,
        token=read_token(settings),
        instance=settings.instance,
        name=settings.name,
        storage=settings.storage,
        capacity=settings.in_engine,
        engine_url=choice.url if reachable else None,
        device=settings.device,
        orphan_timeout=settings.orphan_timeout,
    )
    return LinkClient(joining, tasks, link)


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
