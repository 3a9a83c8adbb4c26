"""One ComfyUI, connected: a client and one socket; prompts are submitted as runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from easel.comfy.client import ComfyClient
from easel.comfy.events import Event
from easel.comfy.outcome import Outcome
from easel.errors import EngineError
from easel.workflow.types import NodeId, Prompt


class Run:
    """One submitted prompt: an async iterator of its events until its end, and its outcome."""

    prompt_id: str
    node_errors: dict[NodeId, Any]
    """What validation found in outputs that are left out (the prompt runs because another output is valid)."""
    started: bool
    """Whether the engine is known to have begun it."""

    def __aiter__(self) -> AsyncIterator[Event]:
        """Iterate over the events of this prompt; one iterator at a time. Ends when the outcome is known."""
        raise NotImplementedError

    async def outcome(self) -> Outcome:
        """Wait for the end and return it. Never raises for what happened to the prompt: see `Outcome.status`."""
        raise NotImplementedError

    async def cancel(self) -> bool:
        """Stop the prompt, waiting or running. True when it had not ended yet; `outcome` says what became of it."""
        raise NotImplementedError


class Connection:
    """A ComfyUI with one open socket. Connect first, post second."""

    client: ComfyClient

    def __init__(
        self,
        client: ComfyClient,
        *,
        poll_interval: float = 2.0,
        on_status: Callable[[int], None] | None = None,
    ) -> None: ...

    @property
    def connected(self) -> bool:
        """Whether the socket is open and was greeted."""
        raise NotImplementedError

    async def open(self, timeout: float = 30.0) -> None:
        """Connect; returns when the engine has greeted us. Raises EngineUnavailable or EngineSilent."""

    async def close(self) -> None:
        """Close the socket (not the client). Runs that are not over end as lost."""

    async def submit(
        self,
        prompt: Prompt,
        *,
        extra_data: Mapping[str, Any] | None = None,
        targets: Sequence[NodeId] | None = None,
    ) -> Run:
        """Post a prompt. Raises InvalidPrompt, BodyTooLarge, EngineUnavailable, EngineSilent, EngineProtocolError."""
        raise NotImplementedError

    def lose(self, error: EngineError) -> None:
        """End all runs as lost with this error at once, as when the engine's process has died."""

    def stalled_for(self) -> float | None:
        """Seconds since a running prompt of ours last moved; None when none runs (for `EngineProcess.activity`)."""
        raise NotImplementedError
