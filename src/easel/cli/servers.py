"""`easel engine` and `easel agent`: settings from the flags, then serve until a signal."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import Any

from easel.settings import load


def given(**flags: Any) -> dict[str, Any]:
    """Return the flags that were given; the others are left to environment, file and defaults."""
    return {
        name: value for name, value in flags.items() if value not in (None, (), []) and value != {}
    }


def engine(*, with_parent: bool, **flags: Any) -> int:
    """Serve the built-in engine. Raises ConfigurationError."""
    settings = load(engine=given(**flags)).engine
    from easel.engine.serve import serve

    _run(serve(settings, with_parent=with_parent))
    return 0


def agent(
    *,
    engine_name: str | None,
    comfyui: str | None,
    command: list[str],
    packs: tuple[str, ...],
    **flags: Any,
) -> int:
    """Serve the agent, or become its engine where ``USE_AGENT`` is off. Raises ConfigurationError."""
    settings = load(agent=given(**flags), engine=given(packs=packs))
    from easel.agent import command as commands

    if not commands.agent_wanted(os.environ):
        commands.exec_engine(command, settings.agent.port, os.environ)
    choice = commands.choose(
        engine=engine_name,
        comfyui=comfyui,
        command=command,
        builtin=settings.engine,
        data_dir=settings.agent.data_dir,
        environ=os.environ,
    )
    from easel.agent.serve import serve

    _run(serve(settings.agent, choice))
    return 0


def _run(server: Coroutine[Any, Any, Any]) -> Any:
    """Run a server on the quickest event loop there is."""
    if sys.platform == "win32":
        return asyncio.run(server)
    import uvloop

    return uvloop.run(server)
