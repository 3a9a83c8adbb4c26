"""Model kinds, their folders, and what lies in them: listed anew at each request, so a new file is seen at once."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from easel.engine.folders import Folders

WEIGHTS = frozenset({".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"})
"""File extensions of model weights."""

LEGACY_NAMES = {"unet": "diffusion_models", "clip": "text_encoders"}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of model: where its files lie and which extensions count (none: all)."""

    folders: tuple[str, ...]
    """Relative to the data directory."""
    extensions: Collection[str] = WEIGHTS


def _below_models(*names: str, also_output: str | None = None) -> tuple[str, ...]:
    folders = tuple(f"models/{name}" for name in names)
    return folders if also_output is None else (*folders, f"output/{also_output}")


KINDS: dict[str, Kind] = {
    "checkpoints": Kind(_below_models("checkpoints", also_output="checkpoints")),
    "configs": Kind(_below_models("configs"), {".yaml"}),
    "loras": Kind(_below_models("loras", also_output="loras")),
    "vae": Kind(_below_models("vae", also_output="vae")),
    "text_encoders": Kind(_below_models("text_encoders", "clip", also_output="clip")),
    "diffusion_models": Kind(
        _below_models("unet", "diffusion_models", also_output="diffusion_models")
    ),
    "clip_vision": Kind(_below_models("clip_vision")),
    "style_models": Kind(_below_models("style_models")),
    "embeddings": Kind(_below_models("embeddings")),
    "diffusers": Kind(_below_models("diffusers"), {"folder"}),
    "vae_approx": Kind(_below_models("vae_approx")),
    "controlnet": Kind(_below_models("controlnet", "t2i_adapter")),
    "gligen": Kind(_below_models("gligen")),
    "upscale_models": Kind(_below_models("upscale_models")),
    "custom_nodes": Kind(("custom_nodes",), ()),
    "hypernetworks": Kind(_below_models("hypernetworks")),
    "photomaker": Kind(_below_models("photomaker")),
    "classifiers": Kind(_below_models("classifiers"), {""}),
    "model_patches": Kind(_below_models("model_patches")),
    "audio_encoders": Kind(_below_models("audio_encoders")),
}
"""ComfyUI's model kinds in its order. What ``CheckpointSave`` and its kin write below ``output`` counts, too."""


class ModelFolders:
    """The model kinds below one data directory. Iterating gives their names."""

    def __init__(self, folders: Folders) -> None:
        self._base = folders.base.absolute()

    def __iter__(self) -> Iterator[str]:
        return iter(KINDS)

    def __contains__(self, kind: object) -> bool:
        return kind in KINDS

    def paths(self, kind: str) -> list[Path]:
        """Return a kind's folders, whether they exist or not.

        Raises KeyError for an unknown kind.
        """
        return [self._base / name for name in KINDS[kind].folders]

    def names(self, kind: str) -> list[str]:
        """List a kind's files relative to its folders, sorted; dangling links are listed, as ComfyUI lists them."""
        found: set[str] = set()
        for folder in self.paths(kind):
            found.update(_walk(folder, KINDS[kind].extensions, hidden=True))
        return sorted(found)

    def describe(self, kind: str) -> list[dict[str, object]]:
        """List a kind's files with size and times, for ``/experiment/models/{folder}``."""
        described: list[dict[str, object]] = []
        for index, folder in enumerate(self.paths(kind)):
            for name in sorted(_walk(folder, WEIGHTS, hidden=False)):
                try:
                    found = (folder / name).stat()
                except OSError:
                    continue
                described.append(
                    {
                        "name": name,
                        "pathIndex": index,
                        "modified": found.st_mtime,
                        "created": found.st_ctime,
                        "size": found.st_size,
                    }
                )
        return described

    def find(self, kind: str, name: str) -> Path | None:
        """Return the file of that name in the first folder that has it, or None. Names cannot leave the folders."""
        if kind not in self:
            kind = LEGACY_NAMES.get(kind, kind)
        if kind not in self:
            return None
        for folder in self.paths(kind):
            path = _below(folder, name)
            if path is not None and path.is_file():
                return path
        return None


def _below(folder: Path, name: str) -> Path | None:
    """Join a name below a folder, or None when it would leave it.

    Links are followed wherever they lead: model folders are full of them on purpose.
    """
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
        return None
    return folder.joinpath(*parts)


def _walk(folder: Path, extensions: Collection[str], *, hidden: bool) -> Iterator[str]:
    """Yield the relative names of files with one of the extensions (none: all), links followed."""
    seen: set[str] = set()
    for where, subfolders, files in os.walk(folder, followlinks=True):
        real = str(Path(where).resolve())
        if real in seen:  # a link that leads back up
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [
            name for name in subfolders if name != ".git" and (hidden or not name.startswith("."))
        ]
        for name in files:
            if not hidden and name.startswith("."):
                continue
            if not extensions or Path(name).suffix.lower() in extensions:
                yield (Path(where) / name).relative_to(folder).as_posix()
