"""One ComfyUI, connected: a client and one socket. Connect first, post second.

Every prompt has an id of our own and is a `Run`. The socket's messages go to the run they name; those that name none
(``executing`` after a reconnect, frames 1 and 3) to the one that runs, for an engine runs one prompt at a time. How a run
ended is read from queue and history (`ending`, `following`), never from the socket alone.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import aiohttp

from easel.comfy import outcome as outcomes
from easel.comfy.answers import Accepted
from easel.comfy.client import ComfyClient
from easel.comfy.event_socket import EventSocket
from easel.comfy.events import Event, Executing, FeatureFlags, Status
from easel.comfy.following import Following
from easel.comfy.in_flight import InFlight
from easel.comfy.run import Run
from easel.errors import EngineError, EngineUnavailable
from easel.workflow.types import NodeId, Prompt

LAST_WORDS = 0.5
"""Longest wait, when an engine is gone in the middle of a post, for its supervision to say why."""


class Connection:
    """A ComfyUI with one open socket, and the prompts in flight on it.

    ``poll_interval``: silence after which a running prompt is asked for. ``silent_timeout``: an engine that answers no
    question for so long loses its prompts (a supervised one is found out earlier, see `lose`). ``on_status`` is called
    with ``queue_remaining`` whenever the engine's queue changes. ``clock`` counts seconds, forwards only.
    """

    def __init__(
        self,
        client: ComfyClient,
        *,
        poll_interval: float = 2.0,
        silent_timeout: float = 60.0,
        connect_timeout: float = 30.0,
        on_status: Callable[[int], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = client
        self.connect_timeout = connect_timeout
        self._on_status = on_status
        self._clock = clock
        self._runs = InFlight()
        self._socket = EventSocket(
            client,
            on_event=self._dispatch,
            on_open=self._opened,
            in_flight=lambda: bool(self._runs),
        )
        self._following = Following(
            client,
            self._socket,
            self._runs,
            poll_interval=poll_interval,
            silent_timeout=silent_timeout,
            clock=clock,
        )

    @property
    def connected(self) -> bool:
        """Whether the socket is open and was greeted."""
        return self._socket.connected

    @property
    def in_flight(self) -> int:
        """Runs that are not over."""
        return len(self._runs)

    @property
    def queue_remaining(self) -> int:
        """Prompts in the engine, of everybody, as last heard."""
        return self._following.queue_remaining

    async def open(self, timeout: float = 30.0) -> None:
        """Connect; returns when the engine has greeted us, and keeps the socket open from then on.

        Tries until the time is over and then raises the last error: EngineUnavailable, EngineSilent, EngineProtocolError.
        """
        self._socket.start()
        try:
            await self._socket.wait_connected(timeout)
        except BaseException:
            await self._socket.close()
            raise
        self._following.start()

    async def wait_connected(self, timeout: float | None = None) -> None:
        """Wait until the socket is open (again). Raises EngineError when the time (`connect_timeout`) is over."""
        await self._socket.wait_connected(self.connect_timeout if timeout is None else timeout)

    async def close(self) -> None:
        """Close the socket (not the client). Runs that are not over end as lost; their prompts are not stopped."""
        self.lose(EngineUnavailable("the connection to the engine was closed"))
        await self._following.stop()
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
            run = Run(
                str(uuid.uuid4()), self._socket.client_id, self._clock(), self._following.cancel
            )
            self._runs.add(run)  # before the post: its first messages may come before the answer
            try:
                accepted = await self.client.post_prompt(
                    prompt,
                    client_id=run.client_id,
                    prompt_id=run.prompt_id,
                    extra_data=extra_data,
                    targets=targets,
                )
            except EngineError as error:
                arrived = run.started or await self._following.arrived(run)
                if arrived is None and not run.over:
                    await run.wait(LAST_WORDS)
                if run.over:  # lost meanwhile: whoever said so knows better why
                    (await run.outcome()).raise_for_status()
                if arrived:
                    run.posted = True
                    return run
                self._give_up(run, error)
                if arrived is None or again or not isinstance(error, EngineUnavailable):
                    raise
                again = (
                    True  # a kept connection the engine had closed; it knows nothing of the prompt
                )
            except asyncio.CancelledError:
                self._give_up(run, EngineUnavailable("given up while it was posted"))
                raise
            except BaseException:
                self._runs.forget(run)
                raise
            else:
                return self._posted(run, accepted)

    def lose(self, error: EngineError) -> None:
        """End all runs as lost with this error at once, as when the engine's process has died."""
        self._following.lose(error)

    def stalled_for(self) -> float | None:
        """Seconds since a running prompt of ours last moved; None when none runs (for `EngineProcess.activity`)."""
        run = self._runs.current
        return None if run is None else self._clock() - run.moved_at

    def _posted(self, run: Run, accepted: Accepted) -> Run:
        run.posted = True
        run.node_errors = accepted.node_errors
        if accepted.prompt_id != run.prompt_id and not run.over:
            self._runs.rename(run, accepted.prompt_id)
        return run

    def _give_up(self, run: Run, error: EngineError) -> None:
        """Nobody gets this run."""
        self._runs.finish(run, outcomes.lost(run.prompt_id, error))
        if not isinstance(error.__cause__, aiohttp.ClientConnectorError):  # else it was never sent
            self._following.drop(run)

    # The socket's side: called by its reader, must be quick.

    def _opened(self) -> None:
        self._following.socket_opened()

    def _dispatch(self, event: Event) -> None:
        """Hand a message to its run."""
        now = self._following.heard_at = self._clock()
        if type(event) is Status:
            self._following.told_queue(event.queue_remaining)
            if self._on_status is not None:
                self._on_status(event.queue_remaining)
            return
        if type(event) is FeatureFlags:
            return
        run = self._runs.owner(event)
        if run is None:
            return
        if run is not self._runs.current:
            before = self._runs.begins(run)
            if before is not None:
                self._following.settle(before)
        run.heard(event, now)
        if type(event) is Executing and event.node is None:
            self._following.settle(run)
