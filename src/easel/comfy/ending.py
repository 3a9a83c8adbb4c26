"""Whether a prompt has ended, and how: ``/queue`` first, ``/history/<id>`` second.

The engine moves a prompt from the queue to the history in one step. Asked in this order, one that is in neither is
gone for good; in the other order a prompt that ends in between looks lost.
"""

from __future__ import annotations

import asyncio

from easel.comfy import outcome as outcomes
from easel.comfy.client import ComfyClient
from easel.comfy.outcome import Outcome
from easel.comfy.run import Run
from easel.errors import PromptLost

PAUSES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between the looks at a prompt whose end was announced but which is still in the queue."""


async def find_outcome(
    client: ComfyClient, run: Run, *, in_queue: bool | None = None
) -> Outcome | None:
    """Return the outcome, or None when the prompt has not ended.

    ``in_queue`` False: it was just seen not to be in the queue. When its end was announced, the history alone is asked
    first, which is all that is needed ordinarily, and then both again with growing pauses. Raises EngineError.
    """
    prompt_id = run.prompt_id
    if in_queue is False or run.ending_since is not None:
        entry = await client.history(prompt_id)
        if entry is not None:
            return outcomes.from_history(prompt_id, entry)
        if in_queue is False:
            return _in_neither(run)
    for pause in (*PAUSES, None):
        if prompt_id not in await client.queue():
            entry = await client.history(prompt_id)
            return _in_neither(run) if entry is None else outcomes.from_history(prompt_id, entry)
        if run.ending_since is None or pause is None:
            break
        await asyncio.sleep(pause)
    return None


def _in_neither(run: Run) -> Outcome:
    """The history was cleared after an end we heard of, we took it out of the line, or the engine lost it."""
    told = run.told_outcome()
    if told is not None:
        return told
    if run.cancelling and not run.started:
        return outcomes.cancelled(run.prompt_id)
    error = PromptLost(
        "the engine has the prompt neither in its queue nor in its history",
        hint="was the engine restarted, or its queue or history cleared by somebody else?",
    )
    return outcomes.lost(run.prompt_id, error)
