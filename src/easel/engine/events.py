"""The seam between execution and the sockets: what the worker tells the world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from PIL import Image

from easel.workflow.types import NodeId


@dataclass(frozen=True, slots=True)
class Preview:
    """A picture on its way to clients, not yet encoded (whether anybody wants it decides the receiver).

    The frame is type 4 with metadata for a client that announced ``supports_preview_metadata``, else type 1; with
    ``plain`` (SaveImageWebsocket's progress-hook image without node) always as ComfyUI sends it for that client.
    """

    image: Image.Image
    image_format: Literal["JPEG", "PNG"]
    max_size: int | None
    """Longest side after scaling, or None for the picture as it is."""
    prompt_id: str
    node_id: NodeId


class EventSink(Protocol):
    """Where the executor sends events. Called from the worker thread; returns at once; never raises for a slow or lost reader.

    ``client_id`` None means every socket. Events keep the order of the calls for each socket.
    """

    def send(self, event: str, data: Mapping[str, Any], client_id: str | None) -> None:
        """Send ``{"type": event, "data": data}``. The sink serialises at once: later changes of ``data`` are not seen."""

    def send_preview(self, preview: Preview, client_id: str | None) -> None:
        """Send a binary preview frame (1 or 4, by what each client announced)."""

    def send_text(self, node_id: NodeId, text: str, client_id: str | None) -> None:
        """Send a binary text frame (3)."""

    def queue_changed(self, remaining: int) -> None:
        """Tell every socket how many prompts wait or run (``status``)."""
