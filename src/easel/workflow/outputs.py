"""What a prompt brought forth: the outputs in ``/history`` and ``executed``, of every kind."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias
from urllib.parse import quote, urlencode

import msgspec

from easel.workflow.progress import display_node
from easel.workflow.types import NodeId, Prompt

OutputKind: TypeAlias = Literal[
    "image", "animation", "video", "audio", "3d", "text", "file", "json"
]

_MODELS = {
    ".glb": "model/gltf-binary",
    ".gltf": "model/gltf+json",
    ".obj": "model/obj",
    ".stl": "model/stl",
    ".fbx": "application/octet-stream",
    ".ply": "application/octet-stream",
    ".splat": "application/octet-stream",
    ".spz": "application/octet-stream",
    ".ksplat": "application/octet-stream",
    ".usdz": "model/vnd.usdz+zip",
}
_TYPES = {
    ".png": "image/png",
    ".apng": "image/apng",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".avif": "image/avif",
    ".jxl": "image/jxl",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".exr": "image/x-exr",
    ".svg": "image/svg+xml",
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".mov": "video/quicktime",
    ".avi": "video/x-msvideo",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".m4a": "audio/mp4",
    ".aac": "audio/aac",
    ".txt": "text/plain",
    ".json": "application/json",
    ".srt": "application/x-subrip",
    ".latent": "application/octet-stream",
    ".safetensors": "application/octet-stream",
    ".zip": "application/zip",
    **_MODELS,
}
"""Fixed, so that a result does not depend on the machine's own table; others are asked of `mimetypes`."""


class OutputItem(msgspec.Struct, frozen=True, kw_only=True):
    """One output of one node: a file in the engine, a text, or another JSON value."""

    node_id: NodeId
    """The node of the prompt that shows it."""
    node_type: str
    kind: OutputKind
    key: str
    """The list it came in: ``images``, ``gifs``, ``audio``, ``text`` …"""
    filename: str = ""
    subfolder: str = ""
    type: str = ""
    """The engine's folder: ``output``, ``temp`` or ``input``."""
    media_type: str = ""
    text: str | None = None
    value: Any = None
    """The value of kind ``json``."""
    extra: dict[str, Any] = {}
    """What else the node said of the file (``format``, ``frame_rate`` …)."""

    @property
    def is_file(self) -> bool:
        """Tell whether the engine holds a file of it."""
        return bool(self.filename)


def collect(outputs: Mapping[str, Any], prompt: Prompt) -> list[OutputItem]:
    """List every output in ``{node_id: {key: [values]}}``, in that order. Never raises: odd values become ``json`` items.

    Outputs of nodes that a node of the prompt expanded into belong to that node. ``animated`` flags are read, not listed.
    """
    items: list[OutputItem] = []
    for raw_id, output in outputs.items():
        node_id = display_node(raw_id, prompt) or raw_id
        node_type = prompt[node_id]["class_type"] if node_id in prompt else ""
        items.extend(collect_node(node_id, node_type, output))
    return items


def collect_node(node_id: NodeId, node_type: str, output: object) -> list[OutputItem]:
    """List the outputs of one node (the ``output`` of an ``executed`` message)."""
    if not isinstance(output, Mapping):
        return []
    flags = output.get("animated")
    animated = isinstance(flags, list | tuple) and any(flag is True for flag in flags)
    items: list[OutputItem] = []
    for key, values in output.items():
        if key == "animated" and isinstance(values, list | tuple):
            continue
        items.extend(
            _item(node_id, node_type, str(key), value, animated=animated)
            for value in (values if isinstance(values, list | tuple) else [values])
        )
    return items


def view_query(item: OutputItem) -> str:
    """Return the escaped query of ComfyUI's ``/view`` for a file output."""
    return urlencode(
        {"filename": item.filename, "subfolder": item.subfolder, "type": item.type},
        quote_via=quote,
        errors="replace",
    )


def view_url(base: str, item: OutputItem) -> str:
    """Return the ``/view`` URL of a file output below ``base`` (may be empty: a relative URL)."""
    return f"{base.rstrip('/')}/view?{view_query(item)}"


def media_type_of(filename: str) -> str:
    """Return the media type by extension; ``application/octet-stream`` when unknown."""
    dot = filename.rfind(".")
    known = _TYPES.get(filename[dot:].lower()) if dot >= 0 else None
    return known or mimetypes.guess_type(filename)[0] or "application/octet-stream"


def _item(node_id: NodeId, node_type: str, key: str, value: Any, *, animated: bool) -> OutputItem:
    if isinstance(value, str):
        return OutputItem(
            node_id=node_id,
            node_type=node_type,
            kind="text",
            key=key,
            text=value,
            media_type="text/plain",
        )
    if isinstance(value, Mapping) and isinstance(value.get("filename"), str) and value["filename"]:
        filename = value["filename"]
        media_type = media_type_of(filename)
        return OutputItem(
            node_id=node_id,
            node_type=node_type,
            kind=_kind(key, filename, media_type, animated=animated),
            key=key,
            filename=filename,
            subfolder=_text(value.get("subfolder")),
            type=_text(value.get("type")) or "output",
            media_type=media_type,
            extra={
                str(name): other
                for name, other in value.items()
                if name not in {"filename", "subfolder", "type"}
            },
        )
    return OutputItem(
        node_id=node_id,
        node_type=node_type,
        kind="json",
        key=key,
        value=value,
        media_type="application/json",
    )


def _kind(key: str, filename: str, media_type: str, *, animated: bool) -> OutputKind:
    dot = filename.rfind(".")
    if dot >= 0 and filename[dot:].lower() in _MODELS:
        return "3d"
    major = media_type.partition("/")[0]
    if major == "image":
        moving = (animated and key == "images") or key == "gifs" or media_type == "image/gif"
        return "animation" if moving else "image"
    if major in {"video", "audio"}:
        return "video" if major == "video" else "audio"
    return "file"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
