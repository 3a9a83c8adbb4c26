"""Which inputs of a prompt are files, and what a caller put there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import msgspec

from easel.workflow.types import Node, NodeId, ObjectInfo, Prompt

InputKind: TypeAlias = Literal["image", "mask", "audio", "video", "file"]
ValueKind: TypeAlias = Literal["url", "data_uri", "base64", "name"]

KNOWN_LOADERS: dict[str, dict[str, InputKind]] = {
    "LoadImage": {"image": "image"},
    "LoadImageMask": {"image": "mask"},
    "LoadImageOutput": {"image": "image"},
    "LoadAudio": {"audio": "audio"},
    "LoadVideo": {"file": "video"},
    "LoadLatent": {"latent": "file"},
    "Load3D": {"model_file": "file"},
    "Load3DAnimation": {"model_file": "file"},
    "VHS_LoadVideo": {"video": "video"},
    "VHS_LoadVideoFFmpeg": {"video": "video"},
    "VHS_LoadAudioUpload": {"audio": "audio"},
}
"""Loader classes and their file inputs, for those whose ``/object_info`` does not say so or is not known.

LoadLatent and the VHS loaders list files without marking the input as an upload."""

_UPLOAD_OPTIONS: dict[str, InputKind] = {
    "image_upload": "image",
    "animated_image_upload": "image",
    "audio_upload": "audio",
    "video_upload": "video",
    "file_upload": "file",
}

_NESTED_TYPES = {"LOAD_3D", "LOAD_3D_ANIMATION"}
_NESTED_KEYS: dict[str, InputKind] = {
    "image": "image",
    "mask": "image",
    "normal": "image",
    "lineart": "image",
    "recording": "video",
}
"""Load3D's viewport widget sends an object of file names, each read like LoadImage's."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+=*\s*")
_DIGEST = re.compile(r"[0-9a-f]{64}(?:[0-9a-f]{32}){0,2}")
_SHORTEST_BASE64 = 64
_LOOKED_AT = 4096
"""Characters looked at: no file name is longer, and a body may hold a hundred megabytes of base64."""


class UploadInput(msgspec.Struct, frozen=True, kw_only=True):
    """One file input of one node, as the caller filled it."""

    node_id: NodeId
    node_type: str
    input_name: str
    kind: InputKind
    value: str
    key: str | None = None
    """The key inside the input's value, where that is an object (Load3D's viewport)."""


def upload_inputs(prompt: Prompt, object_info: ObjectInfo | None = None) -> list[UploadInput]:
    """List the file inputs of a prompt that hold a string, in the order of the prompt.

    An input is a file input when ``/object_info`` marks it as an upload (both declaration styles), or when it belongs to
    a class in `KNOWN_LOADERS`. Links and other values are left out.
    """
    found: list[UploadInput] = []
    kinds: dict[str, dict[str, InputKind]] = {}
    for node_id, node in prompt.items():
        class_type = node["class_type"]
        if class_type not in kinds:
            kinds[class_type] = file_inputs(class_type, object_info)
        for name, kind in kinds[class_type].items():
            found.extend(_filled(node_id, node, name, kind))
    return found


def file_inputs(class_type: str, object_info: ObjectInfo | None = None) -> dict[str, InputKind]:
    """Return the file inputs of a class and their kinds."""
    result: dict[str, InputKind] = {}
    info = (object_info or {}).get(class_type)
    groups = info.get("input") if isinstance(info, dict) else None
    for group in ("required", "optional"):
        declared = groups.get(group) if isinstance(groups, dict) else None
        for name, declaration in declared.items() if isinstance(declared, dict) else ():
            kind = _declared_kind(declaration)
            if kind:
                result[name] = kind
    result.update(KNOWN_LOADERS.get(class_type, {}))
    if class_type in {"Load3D", "Load3DAnimation"}:
        result.setdefault("image", "file")
    return result


def replace_inputs(prompt: Prompt, values: Iterable[tuple[UploadInput, str]]) -> Prompt:
    """Return the prompt with other values in these file inputs; the argument is never changed."""
    result = dict(prompt)
    for upload, value in values:
        node = result[upload.node_id]
        old = node["inputs"][upload.input_name]
        new = value if upload.key is None else {**old, upload.key: value}
        changed: Node = {**node, "inputs": {**node["inputs"], upload.input_name: new}}
        result[upload.node_id] = changed
    return result


def classify(value: str) -> ValueKind:
    """Tell what a file input's value is: a URL of any scheme, a ``data:`` URI, base64, or the name of a file.

    Base64 has at least 64 characters of its alphabet (standard or URL-safe) and nothing else but white space and padding;
    so a name with an extension, a short name and a bare hash are names.
    """
    head = value[:_LOOKED_AT].lstrip()
    if _SCHEME.match(head):
        return "url"
    if head[:5].lower() == "data:":
        return "data_uri"
    text = head.rstrip()
    long_enough = len(text) >= _SHORTEST_BASE64
    return (
        "base64"
        if long_enough and _BASE64.fullmatch(text) and not _DIGEST.fullmatch(text)
        else "name"
    )


def _declared_kind(declaration: Any) -> InputKind | None:
    if not isinstance(declaration, list | tuple) or not declaration:
        return None
    if isinstance(declaration[0], str) and declaration[0] in _NESTED_TYPES:
        return "file"
    options = declaration[1] if len(declaration) > 1 else None
    if not isinstance(options, dict):
        return None
    for option, kind in _UPLOAD_OPTIONS.items():
        if options.get(option):
            return kind
    if any(str(option).endswith("upload") and options[option] for option in options):
        return "file"
    remote = options.get("remote")
    route = remote.get("route") if isinstance(remote, dict) else None
    if isinstance(route, str) and route.startswith("/internal/files/"):
        return "file"
    return None


def _filled(node_id: NodeId, node: Node, name: str, kind: InputKind) -> list[UploadInput]:
    value = node["inputs"].get(name)
    if isinstance(value, str):
        return [
            UploadInput(
                node_id=node_id,
                node_type=node["class_type"],
                input_name=name,
                kind=kind,
                value=value,
            )
        ]
    if not isinstance(value, dict):
        return []
    return [
        UploadInput(
            node_id=node_id,
            node_type=node["class_type"],
            input_name=name,
            kind=nested,
            value=value[key],
            key=key,
        )
        for key, nested in _NESTED_KEYS.items()
        if isinstance(value.get(key), str) and value[key]
    ]
