"""`easel engine` and `easel agent`: settings from the flags, then serve until a signal."""

from __future__ import annotations

import asyncio
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


def _run(server: Coroutine[Any, Any, Any]) -> Any:
    """Run a server on the quickest event loop there is."""
    if sys.platform == "win32":
        return asyncio.run(server)
    import uvloop

    return uvloop.run(server)
