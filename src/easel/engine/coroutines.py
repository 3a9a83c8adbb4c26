"""Asynchronous nodes: their coroutines run side by side on the worker thread while no other node does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple

from easel.engine.node import Interrupted
from easel.workflow.types import NodeId

LOOK_SECONDS = 0.1
"""How often a wait looks for an interrupt."""
END_SECONDS = 1.0
"""How long cancelled coroutines may take to end before nobody waits for them any more."""


class Outcome(NamedTuple):
    """How a node's coroutines ended: what they returned, or what the first of them raised."""

    node_id: NodeId
    returned: list[Any]
    error: BaseException | None


class Coroutines:
    """The coroutines of one prompt at a time, on an event loop that is made when first needed."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: dict[NodeId, asyncio.Task[Outcome]] = {}
        """In the order in which they were started."""

    def start(self, node_id: NodeId, returned: Sequence[Any]) -> None:
        """Start what a node's calls returned, and let it come to its first wait."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        self._tasks[node_id] = self._loop.create_task(_outcome(node_id, returned))
        self._loop.run_until_complete(asyncio.sleep(0))

    def first(self) -> NodeId:
        """Return the node that has waited longest."""
        return next(iter(self._tasks))

    def take(self, interrupted: threading.Event) -> Outcome:
        """Wait until a node has ended and return how; of several the one started first.

        Raises `Interrupted`.
        """
        assert self._loop is not None
        while True:
            for node_id, task in self._tasks.items():
                if task.done():
                    del self._tasks[node_id]
                    return task.result()
            if interrupted.is_set():
                raise Interrupted
            self._loop.run_until_complete(
                asyncio.wait(
                    self._tasks.values(),
                    timeout=LOOK_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            )

    def drop(self) -> None:
        """Cancel what is left of the prompt, also tasks that its nodes have made.

        What does not end is left behind with its loop: no later prompt waits for it.
        """
        self._tasks.clear()
        left = asyncio.all_tasks(self._loop) if self._loop is not None else set()
        if self._loop is None or not left:
            return
        for task in left:
            task.cancel()
        try:
            self._loop.run_until_complete(asyncio.wait(left, timeout=END_SECONDS))
        except BaseException:  # noqa: BLE001 - a node's task may raise SystemExit through the loop
            left = asyncio.all_tasks(self._loop)
        for task in left:
            if not task.done():
                self._release()
                break
            if not task.cancelled():
                task.exception()  # looked at: nobody else will

    def _release(self) -> None:
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def close(self) -> None:
        """Cancel what is left and release the event loop."""
        self.drop()
        self._release()


async def _outcome(node_id: NodeId, returned: Sequence[Any]) -> Outcome:
    """Wait for all of a node's calls. Nothing is raised: SystemExit would go through the loop."""
    calls = [asyncio.ensure_future(_ended(one)) for one in returned]
    try:
        for next_one in asyncio.as_completed(calls):
            _, error = await next_one
            if error is not None:
                return Outcome(node_id, [], error)
        return Outcome(node_id, [call.result()[0] for call in calls], None)
    finally:
        for call in calls:
            call.cancel()


async def _ended(value: Any) -> tuple[Any, BaseException | None]:
    if not isinstance(value, Awaitable):
        return value, None
    try:
        return await value, None
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return None, error  # its own doing
    except BaseException as error:  # noqa: BLE001 - a pack's own code
        return None, error
