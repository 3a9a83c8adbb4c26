"""``/system_stats`` and ``/features``: what this engine is."""

from __future__ import annotations

import asyncio
import os
import sys
from importlib import metadata
from typing import Any

import psutil
from aiohttp import web

from easel import __version__
from easel.engine.server.bodies import json_response
from easel.engine.server.state import STATE

routes = web.RouteTableDef()

COMFYUI_VERSION = "0.3.64"
"""The ComfyUI whose behaviour this engine has."""
FRONTEND_VERSION = "1.27.10"
"""The front end that ComfyUI requires."""
TEMPLATES_VERSION = "0.1.95"
"""The workflow templates that ComfyUI requires."""
ENGINE_NAME = "easel built-in"
"""How the engine says in its answers that it is not ComfyUI."""


def features(max_upload_bytes: int) -> dict[str, object]:
    """Return what the server announces, over HTTP and in answer to ``feature_flags``."""
    return {"supports_preview_metadata": True, "max_upload_size": max_upload_bytes}


def installed_version(package: str) -> str | None:
    """Return a package's version, or None when it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe() -> dict[str, Any]:
    """Return the ``/system_stats`` answer; the device is the CPU and its memory the machine's."""
    memory = psutil.virtual_memory()
    return {
        "system": {
            "os": os.name,
            "ram_total": memory.total,
            "ram_free": memory.available,
            "comfyui_version": COMFYUI_VERSION,
            "required_frontend_version": FRONTEND_VERSION,
            "installed_templates_version": installed_version("comfyui-workflow-templates"),
            "required_templates_version": TEMPLATES_VERSION,
            "python_version": sys.version,
            "pytorch_version": f"none ({ENGINE_NAME} engine)",
            "embedded_python": False,
            "argv": sys.argv,
            "engine": ENGINE_NAME,
            "easel_version": __version__,
        },
        "devices": [
            {
                "name": "cpu",
                "type": "cpu",
                "index": None,
                "vram_total": memory.total,
                "vram_free": memory.available,
                "torch_vram_total": memory.total,
                "torch_vram_free": memory.available,
            }
        ],
    }


@routes.get("/system_stats")
async def system_stats(_: web.Request) -> web.Response:
    """Say what runs here, on how much memory."""
    return json_response(await asyncio.to_thread(describe))


@routes.get("/features")
async def get_features(request: web.Request) -> web.Response:
    """Say what the server supports."""
    return json_response(features(request.app[STATE].settings.max_upload_bytes))
