"""The real ComfyUI, where it is given, for this room's tests too."""

from __future__ import annotations

from tests.e2e.conftest import comfyui, comfyui_base

__all__ = ["comfyui", "comfyui_base"]
