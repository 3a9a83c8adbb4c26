"""What every handler needs, in one typed place."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from easel.engine.engine import Engine
from easel.engine.folders import Folders
from easel.engine.server.logs import LogBook
from easel.engine.server.models import ModelFolders
from easel.engine.server.sockets import SocketHub
from easel.engine.server.users import Users
from easel.settings import EngineSettings


@dataclass(frozen=True, slots=True)
class ServerState:
    """The parts of a running engine."""

    engine: Engine
    folders: Folders
    settings: EngineSettings
    sockets: SocketHub
    logs: LogBook
    users: Users
    models: ModelFolders


STATE: web.AppKey[ServerState] = web.AppKey("state", ServerState)
"""Where an application keeps its `ServerState`."""
