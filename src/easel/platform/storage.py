"""The stored outputs of every service, opened when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from easel.services.folders import outputs_directory
from easel.services.model import ServiceSpec
from easel.storage.outputs import OutputFiles


class Storage:
    """Service → its stored outputs."""

    def __init__(self, home: Path, spec: Callable[[str], ServiceSpec | None]) -> None:
        self._home = home
        self._spec = spec
        self._open: dict[Path, OutputFiles] = {}

    def folder(self, service: str) -> Path:
        """Return the folder in which a service's ``outputs`` lie."""
        spec = self._spec(service)
        if spec is None:
            return self._home / "services" / service
        return outputs_directory(spec, self._home)

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
