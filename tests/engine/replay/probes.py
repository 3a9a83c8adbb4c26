"""The custom nodes that were installed when the recordings were made, as a pack of this engine.

What each does is read off the recordings: ``o*``, ``g7``, ``p`` and ``n`` in tests/fixtures/comfyui/scenarios.
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from typing import Any, cast

import numpy as np

from easel.engine.node import Input, NodeContext, NodeResult, Output, Registry

registry = Registry()

IMAGE = (Output("IMAGE"),)
SALT = Input("INT", {"default": 0, "min": 0, "max": 9223372036854775808})
STEPS = Input("INT", {"default": 5, "min": 1, "max": 10000})
SECONDS = Input("FLOAT", {"default": 0.1, "min": 0, "max": 3600, "step": 0.001})

probe = partial(registry.node, category="probe", python_module="custom_nodes.probe_nodes")


def picture() -> np.ndarray[Any, np.dtype[np.float32]]:
    """A small black IMAGE: batch, height, width, channels."""
    return np.zeros((1, 8, 8, 3), dtype=np.float32)


@probe(
    "ProbeSleep",
    display_name="Probe: sleep",
    required={"steps": STEPS, "seconds": SECONDS, "salt": SALT},
    hidden={"unique_id": "UNIQUE_ID"},
    outputs=IMAGE,
)
def sleep(context: NodeContext, steps: int, seconds: float, salt: int) -> NodeResult:
    """Report progress after each step and look for an interrupt."""
    for step in range(steps):
        context.sleep(seconds)
        context.progress(step + 1, steps)
    return NodeResult((picture(),))


@probe(
    "ProbeDeaf",
    display_name="Probe: deaf",
    required={"steps": STEPS, "seconds": SECONDS, "salt": SALT},
    outputs=IMAGE,
)
def deaf(context: NodeContext, steps: int, seconds: float, salt: int) -> NodeResult:
    """Sleep without reporting anything and without looking for an interrupt."""
    time.sleep(steps * seconds)
    return NodeResult((picture(),))


@probe(
    "ProbeDeafOut",
    display_name="Probe: deaf output",
    required={"steps": STEPS, "seconds": SECONDS, "salt": SALT},
    output_node=True,
)
def deaf_out(context: NodeContext, steps: int, seconds: float, salt: int) -> NodeResult:
    """The same as an output node."""
    time.sleep(steps * seconds)
    return NodeResult(())


@probe(
    "ProbeAsync",
    display_name="Probe: async",
    required={"seconds": SECONDS, "salt": SALT},
    outputs=IMAGE,
)
async def wait(context: NodeContext, seconds: float, salt: int) -> NodeResult:
    """Wait as a coroutine."""
    await asyncio.sleep(seconds)
    return NodeResult((picture(),))


@probe(
    "ProbeText",
    display_name="Probe: text",
    required={"image": Input("IMAGE"), "text": Input("STRING", {"default": ""})},
    outputs=IMAGE,
)
def say(context: NodeContext, image: Any, text: str) -> NodeResult:
    """Send a text frame, a custom event to everybody and one to the prompt's own client."""
    context.send_text(text)
    context.send_event("probe.custom_event", {"text": text, "to": "everybody"})
    client_id = cast("Any", context)._execution.item.client_id  # nodes are not told it
    context.send_event("probe.custom_event", {"text": text, "to": "client"}, client_id)
    return NodeResult((image,))


@probe(
    "ProbeExit",
    display_name="Probe: exit",
    required={"mib": Input("INT", {"default": 1, "min": 0}), "salt": SALT},
    outputs=IMAGE,
)
def leave(context: NodeContext, mib: int, salt: int) -> NodeResult:
    """End the process in the middle of a prompt."""
    os._exit(77)
