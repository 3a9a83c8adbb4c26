"""Progress of a prompt, computed from the engine's events."""

from __future__ import annotations

from typing import Any

import msgspec


class NodeProgress(msgspec.Struct, kw_only=True):
    """Progress of one node: the Function Compute agent's ``TProgress`` (eas-and-fc.md D.1). Times are ms since the epoch."""

    max: float = 0
    value: float = 0
    start: int = 0
    """When the node began, 0 before."""
    last_updated: int = 0
    images: list[dict[str, Any]] = []
    """Every output of the node whatever its kind: ``filename, subfolder, type, url, kind …``, or ``kind: "text", text``."""
    results: list[str] = []
    """Base64 of the files in ``images``, in their order; only when asked for."""
