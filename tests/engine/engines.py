"""The engine in the test's own process: the real server, the real worker thread, a free port."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from easel.engine.serve import RunningEngine, running_engine
from easel.engine.server.sockets import MAX_QUEUED_BYTES
from easel.settings import EngineSettings

PROBES = "tests.engine.replay.probes:registry"


@contextlib.asynccontextmanager
async def engine(
    folder: Path, *packs: str, max_queued_bytes: int = MAX_QUEUED_BYTES, **settings: Any
) -> AsyncIterator[RunningEngine]:
    """Run an engine with its data in ``folder`` until the block ends."""
    options = EngineSettings(port=0, data_dir=folder, packs=packs, **settings)
    async with running_engine(options, max_queued_bytes=max_queued_bytes) as running:
        yield running
