"""Words the packs' declarations share."""

from __future__ import annotations

from typing import Any

from easel.engine.node import Combo, Input, Output

MAX_RESOLUTION = 16384
"""Largest width and height ComfyUI's nodes accept, in pixels."""

IMAGE = Input("IMAGE")
MASK = Input("MASK")
IMAGE_OUT = (Output("IMAGE"),)
MASK_OUT = (Output("MASK"),)
V3_IMAGE = Input("IMAGE", {})
"""An input declared in the newer style always has options."""


def integer(default: int, low: int, high: int, step: int | None = None, **more: Any) -> Input:
    """Declare an INT."""
    steps = {} if step is None else {"step": step}
    return Input("INT", {"default": default, "min": low, "max": high, **steps, **more})


def real(default: float, low: float, high: float, step: float, **more: Any) -> Input:
    """Declare a FLOAT."""
    return Input("FLOAT", {"default": default, "min": low, "max": high, "step": step, **more})


def flag(default: bool) -> Input:
    """Declare a BOOLEAN."""
    return Input("BOOLEAN", {"default": default})


def choice(*choices: str, **options: Any) -> Input:
    """Declare a combo."""
    listed: Combo = choices
    return Input(listed, options or None)


def pixels(default: int, low: int = 0) -> Input:
    """Declare a width, height or position in pixels."""
    return integer(default, low, MAX_RESOLUTION, 1)
