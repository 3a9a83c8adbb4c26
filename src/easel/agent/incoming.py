"""A file on its way in: written to the agent's own folder while it is hashed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

_BUFFER = 256 * 1024


class IncomingFile:
    """Collects chunks; every 256 KiB they go to disk in a thread, so a small file needs one hop and a large one little memory."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{secrets.token_hex(12)}.part"
        self.size = 0
        self._hash = hashlib.sha256()
        self._waiting: list[bytes] = []
        self._waiting_size = 0
        self._file: BinaryIO | None = None
        # A cancelled task's thread may still be writing when the file is removed.
        self._lock = threading.Lock()
        self._removed = False

    @property
    def digest(self) -> str:
        """SHA-256 of what was written so far, in hexadecimal."""
        return self._hash.hexdigest()

    async def write(self, chunk: bytes) -> None:
        """Take a chunk."""
        self._waiting.append(chunk)
        self._waiting_size += len(chunk)
        if self._waiting_size >= _BUFFER:
            chunks, self._waiting, self._waiting_size = self._waiting, [], 0
            await asyncio.to_thread(self.write_now, chunks)

    def write_now(self, chunks: Iterable[bytes]) -> None:
        """Write chunks at once. Blocking: for use in a thread."""
        for chunk in chunks:
            with self._lock:
                if self._removed:
                    return
                if self._file is None:
                    self._file = self.path.open("xb")
                self._file.write(chunk)
            self._hash.update(chunk)
            self.size += len(chunk)

    def finish_now(self) -> None:
        """Write what waits and close the file. Blocking: for use in a thread."""
        waiting, self._waiting = self._waiting, []
        self.write_now(waiting)
        with self._lock:
            if self._file is not None:
                self._file.close()

    def remove_now(self) -> None:
        """Remove the file, whether finished or not. Blocking: for use in a thread; safe to call twice."""
        with self._lock:
            self._removed = True
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
                self.path.unlink(missing_ok=True)
