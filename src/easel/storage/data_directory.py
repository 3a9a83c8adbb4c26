"""The tree of a data directory, made when an instance first starts on it."""

from __future__ import annotations

from pathlib import Path

MODEL_FOLDERS = (
    "audio_encoders",
    "checkpoints",
    "clip",
    "clip_vision",
    "configs",
    "controlnet",
    "diffusers",
    "diffusion_models",
    "embeddings",
    "gligen",
    "hypernetworks",
    "loras",
    "model_patches",
    "photomaker",
    "style_models",
    "text_encoders",
    "unet",
    "upscale_models",
    "vae",
    "vae_approx",
)
"""Folders below ``models`` that ComfyUI 0.3.64 reads (its ``folder_paths``)."""

FOLDERS = ("custom_nodes", "input", "output", "temp", "user", "easel")


def make_tree(data: Path) -> None:
    """Make what is missing. Raises OSError, naming the folder."""
    for name in FOLDERS:
        (data / name).mkdir(parents=True, exist_ok=True)
    for name in MODEL_FOLDERS:
        (data / "models" / name).mkdir(parents=True, exist_ok=True)
