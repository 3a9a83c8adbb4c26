"""What the doors know of the services without asking the database: name → token, specification, target.

Read again when the bus says ``fleet``, and every few seconds in case a message was lost. A door that asks after such a message
waits for the new rows, so that a replaced token is refused at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field

from easel.errors import EaselError, ServiceNotFound
from easel.gateway.limits import Limits
from easel.services.model import Service, ServiceSpec
from easel.services.store import ServiceStore
from easel.tasks.bus import EventBus

log = logging.getLogger(__name__)

TOPIC = "fleet"
LOOK = 5.0
"""Seconds between two looks without having been told."""
RETRY_PAUSE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One service as the doors need it."""

    name: str
    token: bytes
    spec: ServiceSpec
    revision: int
    target: str
    limits: Limits = field(compare=False)
    authority: str = field(default="")
    """Lower-case host name that serves it at the root path, if any."""


class Directory:
    """Every service, in memory."""

    def __init__(self, store: ServiceStore, bus: EventBus) -> None:
        self._store = store
        self._bus = bus
        self._entries: dict[str, Entry] = {}
        self._hosts: dict[str, Entry] = {}
        self._news: asyncio.Event | None = None
        self._reading = asyncio.Lock()
        self._behind = False
        """Something changed that is being read."""
        self.changed = asyncio.Event()
        """Set after each reading that found something else; whoever waits for it clears it."""

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Directory]:
        """Read everything, then follow what changes until the block ends. Raises StoreFailed."""
        with self._bus.subscribe(TOPIC) as news:
            self._news = news
            await self._read()
            following = asyncio.create_task(self._follow(news), name="easel service directory")
            try:
                yield self
            finally:
                following.cancel()
                await asyncio.wait({following})
                self._news = None

    def __iter__(self) -> Iterator[Entry]:
        """Every service."""
        return iter(self._entries.values())

    async def find(self, name: str) -> Entry | None:
        """Return a service, None for an unknown one."""
        if self._behind or (self._news is not None and self._news.is_set()):
            await self._refresh()
        return self._entries.get(name)

    def known(self, name: str) -> Entry | None:
        """Return a service as it was when last read."""
        return self._entries.get(name)

    @property
    def has_hosts(self) -> bool:
        """Whether any service has a host name of its own."""
        return bool(self._hosts)

    async def at_host(self, host: str) -> Entry | None:
        """Return the service that is served at the root path of a host name (lower case, without port)."""
        found = self._hosts.get(host)
        return await self.find(found.name) if found is not None else None

    async def _refresh(self) -> None:
        """Read what is new, once for all who wait; the old rows do when the database does not answer."""
        async with self._reading:
            news = self._news
            if news is None or not news.is_set():
                return
            # Cleared before: what changes while we read is read again.
            news.clear()
            self._behind = True
            try:
                await self._read()
            except EaselError as error:
                log.warning("services could not be read: %s", error)
            finally:
                self._behind = False

    async def _follow(self, news: asyncio.Event) -> None:
        while True:
            told = True
            try:
                async with asyncio.timeout(LOOK):
                    await news.wait()
            except TimeoutError:
                told = False
            if told:
                await self._refresh()
                continue
            try:
                async with self._reading:
                    await self._read()
            except EaselError as error:
                log.warning("services could not be read: %s", error)
                await asyncio.sleep(RETRY_PAUSE)

    async def _read(self) -> None:
        services = await self._store.all()
        entries: dict[str, Entry] = {}
        for one in services:
            # One that was deleted since the look is not there.
            with contextlib.suppress(ServiceNotFound):
                entries[one.name] = await self._entry(one)
        if entries != self._entries:
            self._entries = entries
            self._hosts = _by_host(entries.values())
            self.changed.set()

    async def _entry(self, service: Service) -> Entry:
        known = self._entries.get(service.name)
        if known is not None and known.revision == service.revision:
            spec = known.spec
        else:
            spec = (await self._store.revision(service.name, service.revision)).spec
        # The same object as long as the service lives: requests that are under way are counted in it.
        limits = known.limits if known is not None else Limits()
        limits.change(spec.rate_limit, spec.concurrency_limit)
        return Entry(
            name=service.name,
            token=service.token.encode("utf-8", "surrogatepass"),
            spec=spec,
            revision=service.revision,
            target=service.target,
            limits=limits,
            authority=(spec.web_host or "").lower(),
        )


def _by_host(entries: Iterable[Entry]) -> dict[str, Entry]:
    return {one.authority: one for one in entries if one.authority}
