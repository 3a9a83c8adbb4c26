"""After the platform's process was gone, by a restart or by a kill: rows and processes are brought together again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from easel.errors import EaselError
from easel.fleet.jobs import STOP_GRACE
from easel.fleet.journal import Journal
from easel.fleet.lifecycle import STARTED
from easel.fleet.runtime import Runtime
from easel.services.model import Instance
from easel.services.store import ServiceStore

log = logging.getLogger(__name__)


async def recover(
    store: ServiceStore, runtime: Runtime, journal: Journal, clock: Callable[[], int]
) -> None:
    """Adopt what still runs, undo starts that were cut off, stop what no row knows. Stops that were begun go on by their rows.

    Called before anything is started. Raises `StoreFailed`, and what `Runtime.check` raises.
    """
    own = [one for one in await store.instances() if one.runtime == runtime.name]
    half = [one for one in own if one.status == "starting" and one.started is None]
    others = [one for one in own if one not in half]
    for one in half:
        await _undo_start(store, runtime, one)
    known = await _adopt(store, runtime, journal, clock, others)
    await _stop_strays(runtime, journal, known, own)


async def _undo_start(store: ServiceStore, runtime: Runtime, instance: Instance) -> None:
    """Leave nothing of a start, and do not hold it against the instance."""
    try:
        if instance.handle:
            await runtime.stop(instance.handle, grace=STOP_GRACE)
    except EaselError as error:
        about = {"service": instance.service, "instance": instance.id}
        log.warning("a half-made start was not undone: %s", error, extra=about)
        return  # it is starting without `started`: its next step tries again
    await store.change_instance(instance.id, status="pending", device=None)


async def _adopt(
    store: ServiceStore,
    runtime: Runtime,
    journal: Journal,
    clock: Callable[[], int],
    instances: Sequence[Instance],
) -> set[str]:
    """Return the ids of those that still run. The others are ended with the first look at them."""
    runs = STARTED | {"stopping"}
    rows = {one.id: one for one in instances if one.status in runs and one.handle}
    if not rows:
        return set()
    vitals = await runtime.check({key: one.handle for key, one in rows.items()})
    adopted = {key for key in rows if key in vitals and vitals[key].alive}
    for key in sorted(adopted):
        one = rows[key]
        if one.target == "stopped":
            continue  # its stop goes on
        if one.started is None:  # its agent was quicker than our last word
            await store.change_instance(key, started=clock())
        said = f"{key} kept running while the platform was away"
        await journal.note(one.service, "Adopted", said, instance=key)
    return adopted


async def _stop_strays(
    runtime: Runtime, journal: Journal, known: set[str], rows: Sequence[Instance]
) -> None:
    services = {one.id: one.service for one in rows}
    try:
        for handle in await runtime.strays(known):
            await runtime.stop(handle, grace=STOP_GRACE)
            log.warning("a stray instance was stopped: %s", handle)
            instance = str(handle.get("instance"))
            if instance in services:
                said = f"{instance} ran, but its start was never noted; it was stopped"
                await journal.note(
                    services[instance], "StrayStopped", said, instance=instance, warning=True
                )
    except EaselError as error:
        log.warning("strays were not stopped: %s", error)
