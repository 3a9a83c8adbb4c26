"""The data directory of an engine."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from easel.storage.paths import PathEscape, inside

__all__ = ["FOLDER_TYPES", "Folders", "PathEscape", "inside", "split_annotation"]

FOLDER_TYPES = ("input", "output", "temp")


def split_annotation(name: str, default: str = "input") -> tuple[str, str]:
    """Split ComfyUI's annotated file name ``"x.png [output]"`` into name and folder type."""
    for folder_type in FOLDER_TYPES:
        suffix = f" [{folder_type}]"
        if name.endswith(suffix):
            return name[: -len(suffix)], folder_type
    return name, default


@dataclass(frozen=True, slots=True)
class Folders:
    """``input``, ``output``, ``temp``, ``user``, ``models`` and ``custom_nodes`` below one base directory."""

    base: Path
    output_directory: Path | None = None
    """Instead of ``output`` below the base, as ComfyUI's --output-directory."""
    temp_directory: Path | None = None
    """Above ``temp``, instead of the base, as ComfyUI's --temp-directory."""

    @property
    def input(self) -> Path:
        """Where uploads go and LoadImage reads."""
        return self.base / "input"

    @property
    def output(self) -> Path:
        """Where SaveImage writes."""
        return self.output_directory or self.base / "output"

    @property
    def temp(self) -> Path:
        """Where PreviewImage writes; emptied at start."""
        return (self.temp_directory or self.base) / "temp"

    @property
    def user(self) -> Path:
        """Settings and saved workflows."""
        return self.base / "user"

    @property
    def models(self) -> Path:
        """One folder a kind: ``checkpoints``, ``loras`` …"""
        return self.base / "models"

    def prepare(self) -> None:
        """Make the folders and empty ``temp``."""
        shutil.rmtree(self.temp, ignore_errors=True)
        for path in (
            self.input,
            self.output,
            self.temp,
            self.user,
            self.models,
            self.base / "custom_nodes",
        ):
            path.mkdir(parents=True, exist_ok=True)

    def of_type(self, folder_type: str) -> Path:
        """Return the folder for ``input``, ``output`` or ``temp``.

        Raises KeyError for another type.
        """
        return {"input": self.input, "output": self.output, "temp": self.temp}[folder_type]

    def annotated(self, name: str, default: str = "input") -> Path:
        """Resolve an annotated file name (``"sub/x.png [temp]"``).

        Raises `PathEscape` when it leaves its folder.
        """
        plain, folder_type = split_annotation(name, default)
        return inside(self.of_type(folder_type), plain)

    def files(self, folder: Path) -> list[str]:
        """List the file names directly in a folder, sorted; empty when the folder is missing."""
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in folder.iterdir() if entry.is_file())
