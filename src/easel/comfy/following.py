"""Following prompts to their end: when the engine is asked, how often, and what is done when it does not answer.

A prompt is asked for when its end is announced, when another begins, when it has been silent for a while, and after every
reconnect of the socket. One look a tick serves all runs; while nothing is in flight nothing is asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from easel.comfy.client import ComfyClient
from easel.comfy.ending import find_outcome
from easel.comfy.event_socket import EventSocket
from easel.comfy.in_flight import InFlight
from easel.comfy.run import Run
from easel.errors import EngineError

log = logging.getLogger(__name__)

TICK = 0.25
"""Seconds between two looks at the runs in flight: what is late is noticed this much later."""
ANNOUNCED = 0.25
"""Seconds after an announced end until the history is asked though the last mark (``executing`` null) has not come."""
REPEAT_CANCEL = 0.5
"""Seconds until an interrupt the engine may have forgotten is sent again."""
WAITING_FACTOR = 3
"""A waiting prompt is asked for this much more rarely than a silent running one."""
DOUBT_PAUSE, LONGEST_DOUBT = 4.0, 60.0
"""Silence after which a socket in doubt is opened again: at first, doubled each time, and at most."""
DROP_TRIES = 5


class Following:
    """Asks one engine for the runs in flight."""

    def __init__(
        self,
        client: ComfyClient,
        socket: EventSocket,
        runs: InFlight,
        *,
        poll_interval: float,
        silent_timeout: float,
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._socket = socket
        self._runs = runs
        self._poll_interval = poll_interval
        self._silent_timeout = silent_timeout
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._polling = False
        self._unanswered_since: float | None = None
        self._doubt_pause = DOUBT_PAUSE
        self._mismatches = 0
        self.heard_at = clock()
        """When the socket was last heard."""
        self.queue_remaining = 0
        """Prompts in the engine, of everybody, as last told."""

    def start(self) -> None:
        """Begin to watch. Harmless when begun."""
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch(), name="easel engine watch")

    async def stop(self) -> None:
        """Stop watching and asking."""
        watcher, self._watcher = self._watcher, None
        tasks = [*self._tasks, *([watcher] if watcher else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def told_queue(self, remaining: int) -> None:
        """The socket told the length of the queue."""
        self.queue_remaining = remaining
        self._mismatches = 0

    def socket_opened(self) -> None:
        """The socket is open (again): ends may have been missed meanwhile."""
        self.heard_at = self._clock()
        self._unanswered_since = None
        for run in self._runs:
            run.polled_at = float("-inf")
        if not self._socket.doubtful:
            self._doubt_pause = DOUBT_PAUSE

    def lose(self, error: EngineError) -> None:
        """End all runs as lost."""
        self._unanswered_since = None
        self._runs.lose(error)

    def settle(self, run: Run, *, in_queue: bool | None = None) -> None:
        """Ask how a run ended, unless that is going on. ``in_queue`` False: it was just seen not to be in the queue."""
        if run.ending_since is None and in_queue is None:
            run.ending_since = self._clock()
        if not run.settling and not run.over:
            run.settling = True
            self._spawn(self._ask(run, in_queue))

    async def _ask(self, run: Run, in_queue: bool | None) -> None:
        try:
            outcome = await find_outcome(self._client, run, in_queue=in_queue)
        except EngineError as error:
            self._unanswered(error)
        else:
            self._unanswered_since = None
            if outcome is not None:
                self._runs.finish(run, outcome)
        finally:
            run.settling = False
            run.polled_at = self._clock()

    def _unanswered(self, error: EngineError) -> None:
        """A question was not answered: after too long a time the runs are lost."""
        now = self._clock()
        if self._unanswered_since is None:
            self._unanswered_since = now
        elif now - self._unanswered_since >= self._silent_timeout:
            self.lose(error)

    # What is done when nothing is heard.

    async def _watch(self) -> None:
        while True:
            if not self._runs and not self._socket.doubtful:
                await self._runs.any.wait()
            await asyncio.sleep(TICK)
            self._tick(self._clock())

    def _tick(self, now: float) -> None:
        due: list[Run] = []
        for run in self._runs:
            run.flush_state()
            if run.settling or not run.posted:
                continue
            if run.cancelling and not run.cancel_sure and now - run.cancel_sent_at >= REPEAT_CANCEL:
                run.cancel_sent_at = now
                self._spawn(self._repeat_cancel(run))
            patience = self._poll_interval * (1 if run.started else WAITING_FACTOR)
            if run.ending_since is not None:
                patience = ANNOUNCED
            if run.polled_at < 0 or now - max(run.moved_at, run.polled_at) >= patience:
                due.append(run)
        if due and not self._polling:
            self._polling = True
            self._spawn(self._poll(due))
        self._resolve_doubt(now)

    async def _poll(self, due: list[Run]) -> None:
        """Ask for runs that have been silent: the queue once for all, then the history of those not in it."""
        try:
            snapshot = await self._client.queue()
        except EngineError as error:
            self._unanswered(error)
        else:
            self._unanswered_since = None
            for run in due:
                if run.prompt_id not in snapshot:
                    self.settle(run, in_queue=False)
                elif run.prompt_id in snapshot.running:
                    run.started = True
                    self._runs.current = run
            await self._check_hearing(snapshot.remaining)
        finally:
            self._polling = False
            for run in due:
                run.polled_at = self._clock()

    async def _check_hearing(self, remaining: int) -> None:
        """Every socket is told of every change of the queue; one that is not is deaf and opened again."""
        silent = self._clock() - self.heard_at >= self._poll_interval
        if remaining == self.queue_remaining or not silent or not self._socket.connected:
            self._mismatches = 0
            return
        self._mismatches += 1
        if self._mismatches >= 2:
            self._mismatches = 0
            await self._socket.reopen()

    def _resolve_doubt(self, now: float) -> None:
        """See `event_socket`: open a silent socket in doubt again; give it up when nothing is in flight."""
        if not self._socket.doubtful or not self._socket.connected:
            return
        if not self._runs:
            self._socket.doubtful = False
            self._spawn(self._socket.reopen())
        elif now - self.heard_at >= self._doubt_pause:
            self.heard_at = now
            self._doubt_pause = min(2 * self._doubt_pause, LONGEST_DOUBT)
            self._spawn(self._socket.reopen())

    # Cancelling.

    async def cancel(self, run: Run) -> bool:
        """Tell the engine to stop a run, wherever it is. See `Run.cancel`."""
        if run.over:
            return False
        run.cancelling = True
        await self._send_cancel(run)
        snapshot = await self._client.queue()
        if run.prompt_id not in snapshot:
            self.settle(run, in_queue=False)
        elif run.prompt_id in snapshot.pending:
            await self._send_cancel(run)
        return not run.over or (await run.outcome()).status in ("cancelled", "interrupted")

    async def _send_cancel(self, run: Run) -> None:
        """Take it out of the line, then interrupt it: in this order none slips from one to the other.

        The engine forgets an interrupt that comes before the prompt's first message, for it clears the flag then; so
        only one sent after that is sure.
        """
        run.cancel_sent_at = self._clock()
        started = run.started
        if not started:
            await self._client.delete_pending(run.prompt_id)
        await self._client.interrupt(run.prompt_id)
        run.cancel_sure = run.cancel_sure or started

    async def _repeat_cancel(self, run: Run) -> None:
        try:
            await self._send_cancel(run)
        except EngineError as error:
            self._unanswered(error)

    async def arrived(self, run: Run) -> bool | None:
        """Ask whether a prompt whose post was broken off is in the engine all the same; None when it does not say."""
        try:
            if run.prompt_id in await self._client.queue():
                return True
            return await self._client.history(run.prompt_id) is not None
        except EngineError:
            return None

    def drop(self, run: Run) -> None:
        """Nobody will hear of this prompt: see to it that it does not run."""
        self._spawn(self._drop(run.prompt_id))

    async def _drop(self, prompt_id: str) -> None:
        for attempt in range(DROP_TRIES):
            try:
                await self._client.delete_pending(prompt_id)
                await self._client.interrupt(prompt_id)
                if attempt and prompt_id not in await self._client.queue():
                    return
            except EngineError as error:
                log.debug("prompt %s could not be dropped: %s", prompt_id, error)
            await asyncio.sleep(2**attempt * REPEAT_CANCEL)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run on the side, with a reference kept."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("following the engine's prompts failed", exc_info=error)
