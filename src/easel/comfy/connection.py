"""One ComfyUI, connected: a client and one socket. Connect first, post second.

Every prompt has an id of our own and is a `Run`. The socket's messages go to the run they name; those that name none
(``executing`` after a reconnect, frames 1 and 3) to the one that runs, for an engine runs one prompt at a time. How a run
ended is read from queue and history (`ending`): when its end is announced, when another prompt begins, when it has been
silent for a while, and after every reconnect.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any

import aiohttp

from easel.comfy import outcome as outcomes
from easel.comfy.client import ComfyClient
from easel.comfy.ending import find_outcome
from easel.comfy.event_socket import EventSocket
from easel.comfy.events import Event, Executing, FeatureFlags, Status
from easel.comfy.run import Run
from easel.errors import EngineError, EngineUnavailable
from easel.workflow.types import NodeId, Prompt

log = logging.getLogger(__name__)

TICK = 0.25
"""Seconds between two looks at the runs in flight: what is late is noticed this much later."""
ANNOUNCED = 0.25
"""Seconds after an announced end until the history is asked though the last mark (``executing`` null) has not come."""
REPEAT_CANCEL = 0.5
"""Seconds until an interrupt the engine may have forgotten is sent again."""
WAITING_FACTOR = 3
"""A waiting prompt is asked for this much more rarely than a silent running one."""
DOUBT_PAUSE = 4.0
"""Silence after which a socket in doubt is opened again, at first; doubled each time."""
LAST_WORDS = 0.5
"""Longest wait, when an engine is gone in the middle of a post, for its supervision to say why."""
ABANDON_TRIES = 5


class Connection:
    """A ComfyUI with one open socket, and the prompts in flight on it.

    ``poll_interval``: silence after which a running prompt is asked for. ``silent_timeout``: an engine that answers no
    question for so long loses its prompts (a supervised one is found out earlier, see `lose`). ``on_status`` is called
    with ``queue_remaining`` whenever the engine's queue changes.
    """

    def __init__(
        self,
        client: ComfyClient,
        *,
        poll_interval: float = 2.0,
        silent_timeout: float = 60.0,
        connect_timeout: float = 30.0,
        on_status: Callable[[int], None] | None = None,
    ) -> None:
        self.client = client
        self.poll_interval = poll_interval
        self.silent_timeout = silent_timeout
        self.connect_timeout = connect_timeout
        self.queue_remaining = 0
        """Prompts in the engine, of everybody, as last heard."""
        self._on_status = on_status
        self._runs: dict[str, Run] = {}
        self._current: Run | None = None
        self._socket = EventSocket(
            client,
            on_event=self._dispatch,
            on_open=self._socket_open,
            in_flight=lambda: bool(self._runs),
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._busy = asyncio.Event()
        self._polling = False
        self._unanswered_since: float | None = None
        self._heard_at = 0.0
        self._doubt_pause = DOUBT_PAUSE
        self._mismatches = 0
        self._clock: Callable[[], float] = lambda: 0.0

    @property
    def connected(self) -> bool:
        """Whether the socket is open and was greeted."""
        return self._socket.connected

    @property
    def in_flight(self) -> int:
        """Runs that are not over."""
        return len(self._runs)

    async def open(self, timeout: float = 30.0) -> None:
        """Connect; returns when the engine has greeted us, and keeps the socket open from then on.

        Tries until the time is over and then raises the last error: EngineUnavailable, EngineSilent, EngineProtocolError.
        """
        self._clock = asyncio.get_running_loop().time
        self._heard_at = self._clock()
        self._socket.start()
        try:
            await self._socket.wait_connected(timeout)
        except BaseException:
            await self._socket.close()
            raise
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch(), name="easel engine watch")

    async def wait_connected(self, timeout: float | None = None) -> None:
        """Wait until the socket is open (again). Raises EngineError when the time (`connect_timeout`) is over."""
        await self._socket.wait_connected(self.connect_timeout if timeout is None else timeout)

    async def close(self) -> None:
        """Close the socket (not the client). Runs that are not over end as lost; their prompts are not stopped."""
        self.lose(EngineUnavailable("the connection to the engine was closed"))
        watcher, self._watcher = self._watcher, None
        tasks = [*self._tasks, *([watcher] if watcher else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._socket.close()

    async def __aenter__(self) -> Connection:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def submit(
        self,
        prompt: Prompt,
        *,
        extra_data: Mapping[str, Any] | None = None,
        targets: Sequence[NodeId] | None = None,
    ) -> Run:
        """Post a prompt, once the socket is open.

        Raises InvalidPrompt with ComfyUI's ``error`` and ``node_errors``, BodyTooLarge, EngineUnavailable, EngineSilent,
        EngineProtocolError. Whenever it raises or is cancelled, the prompt does not run on: where it is not known whether
        it arrived, the engine is asked, and told to drop it.
        """
        again = False
        while True:
            await self.wait_connected()
            run = Run(str(uuid.uuid4()), self._socket.client_id, self._clock(), self._cancel)
            # Before the post: its first messages may come before the answer.
            self._runs[run.prompt_id] = run
            self._busy.set()
            try:
                accepted = await self.client.post_prompt(
                    prompt,
                    client_id=run.client_id,
                    prompt_id=run.prompt_id,
                    extra_data=extra_data,
                    targets=targets,
                )
            except EngineError as error:
                arrived = run.started or await self._arrived(run)
                if arrived is None and not run.over:
                    await run.wait(LAST_WORDS)
                if run.over:  # lost meanwhile: whoever said so knows better why
                    (await run.outcome()).raise_for_status()
                if arrived:
                    run.posted = True
                    return run
                self._abandon(run, error)
                if arrived is None or again or not isinstance(error, EngineUnavailable):
                    raise
                again = (
                    True  # a kept connection the engine had closed; it knows nothing of the prompt
                )
                continue
            except asyncio.CancelledError:
                self._abandon(run, EngineUnavailable("the prompt was given up while it was posted"))
                raise
            except BaseException:
                self._forget(run)
                raise
            run.posted = True
            run.node_errors = accepted.node_errors
            if accepted.prompt_id != run.prompt_id:  # an engine that does not take our id
                self._runs.pop(run.prompt_id, None)
                run.prompt_id = accepted.prompt_id
                self._runs[run.prompt_id] = run
            return run

    def lose(self, error: EngineError) -> None:
        """End all runs as lost with this error at once, as when the engine's process has died."""
        self._unanswered_since = None
        for run in list(self._runs.values()):
            # Each its own: an exception raised in several tasks would collect all their tracebacks.
            self._finish(run, outcomes.lost(run.prompt_id, copy.copy(error)))

    def stalled_for(self) -> float | None:
        """Seconds since a running prompt of ours last moved; None when none runs (for `EngineProcess.activity`)."""
        run = self._current
        return None if run is None or run.over else self._clock() - run.moved_at

    # The socket's side: called by the reader, must be quick.

    def _dispatch(self, event: Event) -> None:
        """Hand a message to its run."""
        now = self._heard_at = self._clock()
        if type(event) is Status:
            self.queue_remaining = event.queue_remaining
            self._mismatches = 0
            if self._on_status is not None:
                self._on_status(event.queue_remaining)
            return
        if type(event) is FeatureFlags:
            return
        if event.prompt_id is not None:
            run = self._runs.get(event.prompt_id)
        else:
            run = self._nameless(event)
        if run is None:
            return
        if run is not self._current:
            self._begins(run)
        run.heard(event, now)
        if type(event) is Executing and event.node is None:
            self._settle(run)

    def _nameless(self, event: Event) -> Run | None:
        """Return the run of a message that names no prompt: the one that runs and has not told its end."""
        run = self._current
        if run is None and type(event) is Executing and event.node is not None:
            run = next(iter(self._runs.values()), None)  # told to the running client on a reconnect
        return None if run is None or run.ending_since is not None else run

    def _begins(self, run: Run) -> None:
        """The engine has begun another run than the current one, so that one is over."""
        before = self._current
        if not run.started:
            self._current = run
            if before is not None:
                self._settle(before)
        elif before is None:
            self._current = run

    def _socket_open(self) -> None:
        """Ends may have been missed while the socket was closed."""
        self._heard_at = self._clock()
        self._unanswered_since = None
        for run in self._runs.values():
            run.polled_at = float("-inf")
        self._doubt_pause = DOUBT_PAUSE if not self._socket.doubtful else self._doubt_pause

    # Ends.

    def _settle(self, run: Run, *, in_queue: bool | None = None) -> None:
        """Ask how a run ended, unless that is going on."""
        if run.ending_since is None and in_queue is None:
            run.ending_since = self._clock()
        if not run.settling and not run.over:
            run.settling = True
            self._spawn(self._ask(run, in_queue))

    async def _ask(self, run: Run, in_queue: bool | None) -> None:
        try:
            outcome = await find_outcome(self.client, run, in_queue=in_queue)
        except EngineError as error:
            self._unanswered(error)
        else:
            self._unanswered_since = None
            if outcome is not None:
                self._finish(run, outcome)
        finally:
            run.settling = False
            run.polled_at = self._clock()

    def _finish(self, run: Run, outcome: outcomes.Outcome) -> None:
        run.finish(outcome)
        self._forget(run)

    def _forget(self, run: Run) -> None:
        self._runs.pop(run.prompt_id, None)
        if self._current is run:
            self._current = None
        if not self._runs:
            self._busy.clear()

    def _unanswered(self, error: EngineError) -> None:
        """A question was not answered: after too long a time the runs are lost."""
        now = self._clock()
        if self._unanswered_since is None:
            self._unanswered_since = now
        elif now - self._unanswered_since >= self.silent_timeout:
            self._unanswered_since = None
            self.lose(error)

    # What is done when nothing is heard.

    async def _watch(self) -> None:
        while True:
            if not self._runs and not self._socket.doubtful:
                await self._busy.wait()
            await asyncio.sleep(TICK)
            self._tick(self._clock())

    def _tick(self, now: float) -> None:
        due: list[Run] = []
        for run in self._runs.values():
            run.flush_state()
            if run.settling or not run.posted:
                continue
            if run.cancelling and not run.cancel_sure and now - run.cancel_sent_at >= REPEAT_CANCEL:
                run.cancel_sent_at = now
                self._spawn(self._repeat_cancel(run))
            patience = self.poll_interval * (1 if run.started else WAITING_FACTOR)
            if run.ending_since is not None:
                patience = ANNOUNCED
            if now - max(run.moved_at, run.polled_at) >= patience or run.polled_at < 0:
                due.append(run)
        if due and not self._polling:
            self._polling = True
            self._spawn(self._poll(due))
        self._resolve_doubt(now)

    async def _poll(self, due: list[Run]) -> None:
        """Ask for runs that have been silent: the queue once for all, then the history of those not in it."""
        try:
            snapshot = await self.client.queue()
        except EngineError as error:
            self._unanswered(error)
        else:
            self._unanswered_since = None
            for run in due:
                if run.prompt_id in snapshot:
                    if run.prompt_id in snapshot.running:
                        run.started = True
                        self._current = run
                    run.polled_at = self._clock()
                else:
                    self._settle(run, in_queue=False)
            await self._check_hearing(snapshot.remaining)
        finally:
            self._polling = False
            for run in due:
                run.polled_at = max(run.polled_at, self._clock())

    async def _check_hearing(self, remaining: int) -> None:
        """Every socket is told of every change of the queue; one that is not is deaf and opened again."""
        silent = self._clock() - self._heard_at >= self.poll_interval
        if remaining == self.queue_remaining or not silent or not self.connected:
            self._mismatches = 0
            return
        self._mismatches += 1
        if self._mismatches >= 2:
            self._mismatches = 0
            await self._socket.reopen()

    def _resolve_doubt(self, now: float) -> None:
        """See `event_socket`: open a silent socket in doubt again; give it up when nothing is in flight."""
        if not self._socket.doubtful or not self.connected:
            return
        if not self._runs:
            self._socket.doubtful = False
            self._spawn(self._socket.reopen())
        elif now - self._heard_at >= self._doubt_pause:
            self._heard_at = now
            self._doubt_pause = min(2 * self._doubt_pause, 60.0)
            self._spawn(self._socket.reopen())

    # Cancelling.

    async def _cancel(self, run: Run) -> bool:
        if run.over:
            return False
        run.cancelling = True
        await self._send_cancel(run)
        snapshot = await self.client.queue()
        if run.prompt_id not in snapshot:
            self._settle(run, in_queue=False)
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
            await self.client.delete_pending(run.prompt_id)
        await self.client.interrupt(run.prompt_id)
        run.cancel_sure = run.cancel_sure or started

    async def _repeat_cancel(self, run: Run) -> None:
        try:
            await self._send_cancel(run)
        except EngineError as error:
            self._unanswered(error)

    async def _arrived(self, run: Run) -> bool | None:
        """Ask whether a prompt whose post was broken off is in the engine all the same; None when it does not say."""
        try:
            if run.prompt_id in await self.client.queue():
                return True
            return await self.client.history(run.prompt_id) is not None
        except EngineError:
            return None

    def _abandon(self, run: Run, error: EngineError) -> None:
        """Nobody will hear of this prompt: see to it that it does not run."""
        self._finish(run, outcomes.lost(run.prompt_id, error))
        if not isinstance(error.__cause__, aiohttp.ClientConnectorError):  # else it was never sent
            self._spawn(self._drop(run))

    async def _drop(self, run: Run) -> None:
        for attempt in range(ABANDON_TRIES):
            try:
                await self.client.delete_pending(run.prompt_id)
                await self.client.interrupt(run.prompt_id)
                if attempt and run.prompt_id not in await self.client.queue():
                    return
            except EngineError as error:
                log.debug("prompt %s could not be dropped: %s", run.prompt_id, error)
            await asyncio.sleep(2**attempt * REPEAT_CANCEL)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run on the side, with a reference kept."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("work on the engine's prompts failed", exc_info=error)
