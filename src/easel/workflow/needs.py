"""What a workflow needs and an engine lacks: node classes, models, files; and which loaders read which model folder. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from easel.workflow.types import NodeId, ObjectInfo, Prompt, is_link, unwrapped

BY_INPUT = {
    "ckpt_name": "checkpoints",
    "config_name": "configs",
    "lora_name": "loras",
    "vae_name": "vae",
    "control_net_name": "controlnet",
    "unet_name": "diffusion_models",
    "clip_name": "text_encoders",
    "clip_name1": "text_encoders",
    "clip_name2": "text_encoders",
    "clip_name3": "text_encoders",
    "clip_name4": "text_encoders",
    "style_model_name": "style_models",
    "gligen_name": "gligen",
    "hypernetwork_name": "hypernetworks",
    "photomaker_model_name": "photomaker",
    "audio_encoder_name": "audio_encoders",
}
"""Name of a loader's input → the folder below ``models`` that it lists (ComfyUI 0.3.64)."""

BY_LOADER = {
    "CLIPVisionLoader.clip_name": "clip_vision",
    "UpscaleModelLoader.model_name": "upscale_models",
    "ModelPatchLoader.name": "model_patches",
    "DiffusersLoader.model_path": "diffusers",
}
"""Inputs whose name says too little."""

UPLOADS = ("image_upload", "audio_upload", "video_upload", "file_upload")
NEAR = 3
"""Similar names that are offered."""


class Lack(NamedTuple):
    """Something that is missing."""

    kind: str
    """``node``, ``model``, ``file`` or ``choice``."""
    node_id: NodeId
    class_type: str
    input: str | None
    value: str | None
    folder: str | None
    """The folder of the data directory that the file belongs in."""
    message: str
    advice: str


def folder_of(class_type: str, name: str) -> str | None:
    """Return the folder below ``models`` that a loader's input lists, None for an input that lists no models."""
    return BY_LOADER.get(f"{class_type}.{name}") or BY_INPUT.get(name)


def loaders(object_info: ObjectInfo) -> dict[str, list[str]]:
    """Return folder → the loader inputs that read it, as ``Class.input``."""
    found: dict[str, list[str]] = {}
    for class_type, node in object_info.items():
        for name, spec in _declared(node).items():
            folder = folder_of(class_type, name)
            if folder is not None and choices(spec) is not None:
                found.setdefault(folder, []).append(f"{class_type}.{name}")
    return found


def missing(prompt: Prompt, object_info: ObjectInfo) -> list[Lack]:
    """Return what a prompt needs and the engine lacks, in the prompt's order."""
    found: list[Lack] = []
    for node_id, node in prompt.items():
        class_type = node["class_type"]
        known = object_info.get(class_type)
        if known is None:
            found.append(_node(node_id, class_type, list(object_info)))
            continue
        declared = _declared(known)
        for name, given in node["inputs"].items():
            value = unwrapped(given)
            options = choices(declared.get(name))
            if options is None or is_link(given) or value in options:
                continue
            place = (node_id, class_type, name)
            found.append(_value(place, value, options, declared[name]))
    return found


def choices(spec: Any) -> list[Any] | None:
    """Return the values an input may have, None for an input that is no choice."""
    if not isinstance(spec, Sequence) or isinstance(spec, str) or not spec:
        return None
    if isinstance(spec[0], list):
        return spec[0]
    options = _options(spec)
    listed = options.get("options")
    return listed if spec[0] == "COMBO" and isinstance(listed, list) else None


def _options(spec: Sequence[Any]) -> Mapping[str, Any]:
    return spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}


def _declared(node: Mapping[str, Any]) -> dict[str, Any]:
    inputs = node.get("input")
    declared: dict[str, Any] = {}
    for part in ("required", "optional"):
        found = inputs.get(part) if isinstance(inputs, Mapping) else None
        if isinstance(found, Mapping):
            declared.update(found)
    return declared


def _node(node_id: NodeId, class_type: str, known: list[str]) -> Lack:
    near = difflib.get_close_matches(class_type, known, NEAR)
    advice = "put its pack into the storage's custom_nodes folder, then restart the process"
    return Lack(
        kind="node",
        node_id=node_id,
        class_type=class_type,
        input=None,
        value=None,
        folder="custom_nodes",
        message=f"node {node_id}: the class {class_type} is not known",
        advice=f"{advice}{_or_one_of(near)}",
    )


def _value(place: tuple[NodeId, str, str], value: Any, options: list[Any], spec: Any) -> Lack:
    node_id, class_type, name = place
    shown = str(value)
    near = difflib.get_close_matches(shown, [str(one) for one in options], NEAR, 0.5)
    folder = folder_of(class_type, name)
    kind, advice = "choice", "choose another value"
    if folder is not None:
        kind, folder = "model", f"models/{folder}"
        advice = f"put the file into the storage's {folder}, then load new models"
    elif any(_options(spec).get(flag) for flag in UPLOADS):
        kind, folder = "file", "input"
        advice = "upload it, or give it as a URL or inline"
    return Lack(
        kind=kind,
        node_id=node_id,
        class_type=class_type,
        input=name,
        value=shown,
        folder=folder,
        message=f"node {node_id} ({class_type}): {name} {shown!r} is not there",
        advice=f"{advice}{_or_one_of(near)}",
    )


def _or_one_of(near: list[str]) -> str:
    return f"; or is it {', '.join(near)}?" if near else ""
