"""After the platform's process was gone, by a restart or by a kill: rows and processes are brought together again."""

from __future__ import annotations

import asyncio
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
    """Adopt what still runs; stop what no row knows, and all that starts left behind that were cut off.

    What is left in the rows, such as a start to begin anew or a stop to go on with, is done by the ordinary steps. Called
    before anything is started. Raises `StoreFailed`, and what `Runtime.check` raises.
    """
    own = [one for one in await store.instances() if one.runtime == runtime.name]
    known = await _adopt(store, runtime, journal, clock, own)
    await _stop_strays(runtime, journal, known, own)


async def sweep(store: ServiceStore, runtime: Runtime, journal: Journal) -> None:
    """Stop what runs without a row, such as a process that was being made while its start was cut off.

    To be called while nothing is started: a row is there before its process. Raises `StoreFailed`.
    """
    known = {one.id for one in await store.instances()}
    await _stop_strays(runtime, journal, known, [])


async def _adopt(
    store: ServiceStore,
    runtime: Runtime,
    journal: Journal,
    clock: Callable[[], int],
    instances: Sequence[Instance],
) -> set[str]:
    """Return the ids of those that still run. The others are found dead by the first check."""
    rows = {one.id: one for one in instances if one.handle and _was_started(one)}
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
        strays = await runtime.strays(known)
        await asyncio.gather(*(runtime.stop(handle, grace=STOP_GRACE) for handle in strays))
        for handle in strays:
            log.warning("a stray instance was stopped: %s", handle)
            instance = str(handle.get("instance"))
            if instance in services:
                said = f"{instance} ran, but its start was never noted; it was stopped"
                await journal.note(
                    services[instance], "StrayStopped", said, instance=instance, warning=True
                )
    except EaselError as error:
        log.warning("strays were not stopped: %s", error)


def _was_started(instance: Instance) -> bool:
    half_made = instance.status == "starting" and instance.started is None
    return instance.status in STARTED | {"stopping"} and not half_made
