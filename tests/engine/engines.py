"""The engine in the test's own process: the real server, the real worker thread, a free port."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from easel.engine.serve import RunningEngine, running_engine
from easel.settings import EngineSettings

PROBES = "tests.engine.replay.probes:registry"


@contextlib.asynccontextmanager
async def engine(
    folder: Path, *packs: str, max_queued_bytes: int | None = None, **settings: Any
) -> AsyncIterator[RunningEngine]:
    """Run an engine with its data in ``folder`` until the block ends."""
    limits = {} if max_queued_bytes is None else {"max_queued_bytes": max_queued_bytes}
    options = EngineSettings(port=0, data_dir=folder, packs=packs, **settings)
    async with running_engine(options, **limits) as running:
        yield running
