"""Ended tasks and their outputs are kept as long as the setting says."""

from __future__ import annotations

from pathlib import Path

from easel.platform.retention import Retention
from easel.services.model import EngineSpec, Service, ServiceSpec
from easel.services.sql_store import SqlServiceStore
from easel.storage.outputs import OutputFiles
from easel.tasks.model import Ending
from tests.tasks.conftest import Bench, new

WEEK = 7 * 24 * 3600 * 1000


async def test_what_is_too_old_goes_and_the_rest_stays(bench: Bench, tmp_path: Path) -> None:
    tasks = bench.tasks
    services = SqlServiceStore(tasks.store._database, clock=bench.clock)  # type: ignore[attr-defined]
    spec = ServiceSpec(name="paint", edition="api", engine=EngineSpec(kind="builtin"))
    service = Service(
        name="paint",
        edition="api",
        revision=1,
        instances=1,
        token="t",
        join_token="j",
        created=0,
        updated=0,
    )
    await services.create(service, spec, "{}", [])
    files = OutputFiles(tmp_path)
    await files.open()
    await tasks.submit(new("old"), 10)
    held = await tasks.claim("paint", "i-1")
    assert held is not None
    await tasks.finish(held.lease, Ending(state="succeeded", ended=bench.clock()))
    await tasks.submit(new("waits"), 10)
    retention = Retention(tasks, services, lambda _: files, clock=bench.clock)
    assert await retention.sweep() == 0
    bench.clock.now += WEEK + 1
    assert await retention.sweep() == 1
    left = [task.id for task in await tasks.store.page("paint")]
    assert left == ["waits"]
    await files.close()
