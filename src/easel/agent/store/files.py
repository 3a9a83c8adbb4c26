"""The progress store as a folder of JSON files, which may lie on a share (NAS) that several agents mount.

::

    tasks/
      records/3f/portrait_7-3f09….json     one record; the folder is the digest's first two digits
      unfinished/<owner>/portrait_7-3f09…  a marker for each unfinished task of an owner; its content is nothing
      new/                                 files being written

- **Atomic**: a file is written under ``new/`` and then moved into place; readers see the old record or the new one.
  `create` links instead of moving, which fails when the name exists: of many processes exactly one wins.
- **Any id**: file names are made by `file_stem`; the record holds the true id, and it is checked on reading.
- **Markers**: an unfinished task's marker is written before its record and removed after the finished one, so a crash
  leaves at most a marker too many, which `unfinished` clears away.
- **Durable**: everything survives the death of the process. Accepted (202) tasks survive a power cut too: their creation
  and their end are synced to the disk. Progress in between, and tasks whose caller waits, are not worth the pause.
- **Damaged files** (torn by a power cut, put there by hand) are logged and read as absent; a `create` moves them aside.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from easel.agent.record import FINISHED, TaskRecord
from easel.agent.store.codec import DamagedRecordError, decode, encode, file_stem
from easel.agent.store.lanes import Lanes
from easel.errors import StoreFailed

log = logging.getLogger(__name__)

T = TypeVar("T")

_HINTS = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "make the folder writable for the user the agent runs as",
    errno.EPERM: "make the folder writable for the user the agent runs as",
    errno.ENOTDIR: "a file is in the way of the folder: choose another data directory",
    errno.EEXIST: "a file is in the way of the folder: choose another data directory",
    errno.ESTALE: "the network share went away: mount it again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""What file systems without hard links answer (exFAT, some shares)."""

_LEFT_BEHIND = 3600.0
"""Age in seconds at which a file in ``new/``, or a marker without record, belongs to nobody any more."""

_STEM = re.compile(r"[a-z0-9_]+-[0-9a-f]{40}")

_CLAIM_TIMEOUT = 5.0
"""Longest time between claiming a name and filling it, on file systems without hard links."""


class _Entry(NamedTuple):
    """What the threads need of a record, taken before the caller may change it."""

    stem: str
    data: bytes
    task_id: str
    owner: str
    finished: bool
    accepted: bool
    """Answered with 202: it has to survive a power cut."""

    @classmethod
    def of(cls, record: TaskRecord) -> _Entry:
        return cls(
            file_stem(record.id),
            encode(record),
            record.id,
            record.owner,
            record.state in FINISHED,
            record.request is not None,
        )


class FileStore:
    """A `ProgressStore` in a folder. See the module's text for its layout and guarantees."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._records = root / "records"
        self._unfinished = root / "unfinished"
        self._new = root / "new"
        self._lanes = Lanes(1)  # more threads only wrest the interpreter from one another
        self._process = uuid.uuid4().hex
        self._numbers = itertools.count()
        self._marked: set[tuple[str, str]] = set()
        """Owner and stem of the unfinished tasks whose marker this process has written."""

    async def open(self) -> None:
        """Make the folders (mode 0700) and clear away what killed writers left."""
        await self._run("", self._prepare)

    async def close(self) -> None:
        """Finish what is being written."""
        await self._lanes.close()

    async def create(self, record: TaskRecord) -> TaskRecord | None:
        """Store the record if its id is free; else return the one that holds it."""
        entry = _Entry.of(record)
        return await self._run(entry.task_id, lambda: self._create(entry))

    async def save(self, record: TaskRecord) -> None:
        """Replace the record."""
        entry = _Entry.of(record)
        await self._run(entry.task_id, lambda: self._save(entry))

    async def save_all(self, records: Sequence[TaskRecord]) -> None:
        """Replace the records, one after the other in one thread."""
        entries = [_Entry.of(record) for record in records]

        def save() -> None:
            for entry in entries:
                self._save(entry)

        await self._run("", save)

    async def load(self, task_id: str) -> TaskRecord | None:
        """Return the record, or None."""
        path = self._path(file_stem(task_id))
        return await self._run(task_id, lambda: _read(path, task_id))

    async def unfinished(self, owner: str) -> list[TaskRecord]:
        """Return the owner's queued and running records, oldest first, by way of its markers."""
        return await self._run(owner, lambda: self._list(owner))

    async def _run(self, key: str, call: Callable[[], T]) -> T:
        def translated() -> T:
            try:
                return call()
            except OSError as error:
                raise StoreFailed(
                    f"the progress store in {self._root} failed: {error.strerror or error}",
                    hint=_HINTS.get(error.errno or 0),
                ) from error

        return await self._lanes.run(key, translated)

    # What follows runs in threads.

    def _path(self, stem: str) -> Path:
        return self._records / stem[-40:-38] / f"{stem}.json"

    def _prepare(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self._records, self._unfinished, self._new):
            folder.mkdir(mode=0o700, exist_ok=True)
        for path in self._new.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _LEFT_BEHIND:
                    path.unlink()

    def _create(self, entry: _Entry) -> TaskRecord | None:
        path = self._path(entry.stem)
        new = self._write(entry.data, entry.accepted)
        try:
            if not entry.finished:
                self._mark(entry, new)
            while not _place_if_free(new, path):
                holder = _read(path, entry.task_id)
                if holder is None:
                    _make_way(path, entry.task_id)
                    continue
                if holder.owner != entry.owner or holder.state in FINISHED:
                    self._unmark(entry)
                return holder
        finally:
            new.unlink(missing_ok=True)
        if entry.accepted:
            _sync_folder(path.parent)
        return None

    def _save(self, entry: _Entry) -> None:
        path = self._path(entry.stem)
        durable = entry.finished and entry.accepted
        new = self._write(entry.data, durable)
        try:
            if not entry.finished and (entry.owner, entry.stem) not in self._marked:
                self._mark(entry, new)
            try:
                new.replace(path)
            except FileNotFoundError:
                path.parent.mkdir(mode=0o700, exist_ok=True)
                new.replace(path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        if durable:
            _sync_folder(path.parent)
        if entry.finished:
            self._unmark(entry)

    def _write(self, data: bytes, durable: bool) -> Path:
        path = self._new / f"{self._process}-{next(self._numbers)}"
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(file, view) :]
                if durable:
                    os.fsync(file)
            finally:
                os.close(file)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return path

    def _mark(self, entry: _Entry, new: Path) -> None:
        """Make the owner's marker. Its content does not matter: a link costs a tenth of what a file costs."""
        marker = self._unfinished / file_stem(entry.owner) / entry.stem
        marker.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            os.link(new, marker)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.close(os.open(marker, os.O_WRONLY | os.O_CREAT, 0o600))
        self._marked.add((entry.owner, entry.stem))

    def _unmark(self, entry: _Entry) -> None:
        self._marked.discard((entry.owner, entry.stem))
        (self._unfinished / file_stem(entry.owner) / entry.stem).unlink(missing_ok=True)

    def _list(self, owner: str) -> list[TaskRecord]:
        found: list[TaskRecord] = []
        try:
            folder = self._unfinished / file_stem(owner)
            markers = [path for path in folder.iterdir() if _STEM.fullmatch(path.name)]
        except FileNotFoundError:
            return found
        for marker in markers:
            record = _read(self._path(marker.name), None)
            if record is None:
                # Its record may be about to come: only an old marker is a crash's.
                with contextlib.suppress(FileNotFoundError):
                    if marker.stat().st_mtime < time.time() - _LEFT_BEHIND:
                        marker.unlink()
            elif file_stem(record.id) != marker.name:
                log.warning("ignored: %s holds the record of %r", marker, record.id)
            elif record.owner != owner or record.state in FINISHED:
                marker.unlink(missing_ok=True)
            else:
                found.append(record)
        return sorted(found, key=lambda record: (record.created, record.id))


def _read(path: Path, task_id: str | None) -> TaskRecord | None:
    """Return the record in a file; None when there is none, or (said aloud) when it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        log.warning("ignored: %s is a folder", path)
        return None
    if not data:  # a name that is claimed but not filled yet (`_place_if_free`)
        return None
    try:
        return decode(data, task_id)
    except DamagedRecordError as error:
        log.warning("ignored: %s is not a task record: %s", path, error)
        return None


def _place_if_free(new: Path, path: Path) -> bool:
    """Give the written file its name unless the name is taken."""
    try:
        os.link(new, path)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        return _place_if_free(new, path)
    except FileExistsError:
        # NFS may repeat a request whose answer got lost: then the name that exists is ours.
        with contextlib.suppress(FileNotFoundError):
            return new.samefile(path)
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        path.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return False
        new.replace(path)
    return True


def _make_way(path: Path, task_id: str) -> None:
    """Move a damaged file aside, keeping it; wait for one that is claimed and not filled yet."""
    try:
        status = path.stat()
        if status.st_size == 0 and abs(time.time() - status.st_mtime) < _CLAIM_TIMEOUT:
            time.sleep(0.01)  # in a thread of the store
            return
        if _read(path, task_id) is not None:
            return  # it has just been put there
        aside = path.with_name(f"{path.stem}.damaged-{uuid.uuid4().hex[:8]}")
        path.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside, task_id) is None:
        log.warning("moved aside: %s is not a record of task %r", aside, task_id)
        return
    # Another process replaced the damaged file between our look and our move: its record goes back.
    try:
        os.link(aside, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        aside.rename(path)
        return
    aside.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a new name in the folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
