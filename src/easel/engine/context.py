"""What happens while one prompt runs: its progress, its interrupt, and what its nodes may ask of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from easel.engine.events import EventSink, Preview
from easel.engine.folders import Folders
from easel.engine.node import Interrupted
from easel.engine.queue import Item
from easel.workflow.types import NodeId

PREVIEW_SIZE = 512
"""Longest side of a step preview, as ComfyUI's --preview-size."""
SHOWN_NODES = 256
"""``progress_state`` repeats the state of all nodes so far; beyond this many only that of the one that changed: a prompt of
ten thousand nodes would else send gigabytes."""


class Execution:
    """One running prompt: where its events go, how far its nodes are, whether it was interrupted."""

    def __init__(self, item: Item, sink: EventSink, folders: Folders, *, previews: bool) -> None:
        self.item = item
        self.folders = folders
        self.previews = previews
        self.interrupted = item.interrupted
        self.current: NodeId | None = None
        """The node that runs, or ran last."""
        self._sink = sink
        self._states: dict[NodeId, dict[str, Any]] = {}

    def send(self, event: str, data: Mapping[str, Any], *, everybody: bool = False) -> None:
        """Send an event to the prompt's client; without one only what is for everybody goes out."""
        if self.item.client_id is not None or everybody:
            self._sink.send(event, data, self.item.client_id)

    def send_to(self, event: str, data: Mapping[str, Any], client_id: str | None) -> None:
        """Send a custom event."""
        self._sink.send(event, data, client_id)

    def started(self, node_id: NodeId) -> None:
        """A node begins to run."""
        self.current = node_id
        self._state(node_id, 0.0, 1.0, "running")
        self.send(
            "executing",
            {"node": node_id, "display_node": node_id, "prompt_id": self.item.prompt_id},
        )

    def finished(self, node_id: NodeId) -> None:
        """A node has run, or its result was cached."""
        before = self._states.get(node_id)
        maximum = before["max"] if before else 1
        self._state(node_id, maximum, maximum, "finished")

    def step(
        self, node_id: NodeId, value: float, maximum: float, preview: Preview | None = None
    ) -> None:
        """A node reports a step. Without a client every socket hears of it, as from ComfyUI."""
        self._state(node_id, value, maximum, "running")
        if preview is not None:
            self._sink.send_preview(preview, self.item.client_id)
        prompt_id = self.item.prompt_id
        self.send(
            "progress",
            {"value": value, "max": maximum, "prompt_id": prompt_id, "node": node_id},
            everybody=True,
        )

    def text(self, node_id: NodeId, text: str) -> None:
        """Send a text frame."""
        self._sink.send_text(node_id, text, self.item.client_id)

    def check(self) -> None:
        """Raise `Interrupted` if the prompt was interrupted."""
        if self.interrupted.is_set():
            raise Interrupted

    def _state(self, node_id: NodeId, value: float, maximum: float, state: str) -> None:
        prompt_id = self.item.prompt_id
        self._states[node_id] = {
            "value": value,
            "max": maximum,
            "state": state,
            "node_id": node_id,
            "prompt_id": prompt_id,
            "display_node_id": node_id,
            "parent_node_id": None,
            "real_node_id": node_id,
        }
        shown: Mapping[NodeId, Any] = self._states
        if len(self._states) > SHOWN_NODES:
            shown = {node_id: self._states[node_id]}
        data = {"prompt_id": prompt_id, "nodes": shown}
        self.send("progress_state", data, everybody=True)


class Context:
    """`easel.engine.node.NodeContext` for one node of one execution."""

    __slots__ = ("_execution", "node_id")

    def __init__(self, execution: Execution, node_id: NodeId) -> None:
        self._execution = execution
        self.node_id = node_id

    @property
    def prompt_id(self) -> str:
        """The id of the prompt."""
        return self._execution.item.prompt_id

    @property
    def prompt(self) -> Any:
        """The whole prompt."""
        return self._execution.item.prompt

    @property
    def extra_pnginfo(self) -> Mapping[str, Any] | None:
        """What the front end wants written into PNGs."""
        info = self._execution.item.extra_data.get("extra_pnginfo")
        return info if isinstance(info, dict) else None

    @property
    def folders(self) -> Folders:
        """The engine's folders."""
        return self._execution.folders

    def progress(self, value: float, maximum: float, preview: Image.Image | None = None) -> None:
        """Report a step and look for an interrupt."""
        self._execution.check()
        shown = None
        if preview is not None and self._execution.previews:
            shown = Preview(preview, "JPEG", PREVIEW_SIZE, self.prompt_id, self.node_id)
        self._execution.step(self.node_id, value, maximum, shown)

    def check_interrupt(self) -> None:
        """Look for an interrupt."""
        self._execution.check()

    def sleep(self, seconds: float) -> None:
        """Wait; an interrupt ends it."""
        self._execution.interrupted.wait(seconds)
        self._execution.check()

    def send_text(self, text: str) -> None:
        """Send a progress text."""
        self._execution.text(self.node_id, text)

    def send_image(self, image: Image.Image, value: float, maximum: float) -> None:
        """Report a step with a full-size picture."""
        self._execution.check()
        shown = Preview(image, "PNG", None, self.prompt_id, self.node_id)
        self._execution.step(self.node_id, value, maximum, shown)

    def send_event(self, event: str, data: Mapping[str, Any], client_id: str | None = None) -> None:
        """Send a custom event."""
        self._execution.send_to(event, data, client_id)
