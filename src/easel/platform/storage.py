"""The stored outputs of every service, opened when first asked for."""

from __future__ import annotations

from pathlib import Path

from easel.gateway.directory import Directory
from easel.services.folders import EASEL, outputs_directory
from easel.storage.outputs import OutputFiles


class Storage:
    """Service → its stored outputs."""

    def __init__(self, home: Path, directory: Directory) -> None:
        self._home = home
        self._directory = directory
        self._open: dict[Path, OutputFiles] = {}

    def folder(self, service: str) -> Path:
        """Return the folder in which a service's ``outputs`` lie."""
        entry = self._directory.known(service)
        if entry is None:
            return self._home / "services" / service / EASEL
        return outputs_directory(entry.spec, self._home)

    def most_waiting(self, service: str) -> int:
        """Return how many tasks of a service may wait."""
        entry = self._directory.known(service)
        return entry.spec.max_waiting if entry is not None else 0

    def files(self, service: str) -> OutputFiles:
        """Return the stored outputs of a service."""
        folder = self.folder(service)
        if folder not in self._open:
            self._open[folder] = OutputFiles(folder)
        return self._open[folder]

    async def close(self) -> None:
        """Finish what is being written."""
        for files in self._open.values():
            await files.close()
