"""Where a service's files are on this machine."""

from __future__ import annotations

from pathlib import Path

from easel.services.model import ServiceSpec

EASEL = "easel"
"""The part of a data directory that is Easel's: stored outputs, and what instances keep for themselves."""


def data_directory(spec: ServiceSpec, home: Path) -> Path:
    """Return a service's data directory: what its storage mounts, else a folder in the platform's home."""
    for mount in spec.mounts:
        if mount.mount_path == spec.data_path and mount.source is not None:
            return Path(mount.source)
    return home / "services" / spec.name


def outputs_directory(spec: ServiceSpec, home: Path) -> Path:
    """Return the folder that `storage.OutputFiles` keeps the outputs of a service's tasks in."""
    return data_directory(spec, home) / EASEL
