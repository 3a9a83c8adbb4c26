"""Where output nodes write: names with counters, whole files only, never outside their folder."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)

_REMEMBERED = 1024
_STEPS = 16


@dataclass(frozen=True, slots=True)
class Target:
    """A prefix, resolved: the folder to write into and the name before the counter."""

    folder: Path
    subfolder: str
    """As it appears in ``executed`` messages: relative to the folder of the type, empty for that folder itself."""
    name: str
    """The name before ``_00001_``; may still hold ``%batch_num%``."""


def resolve(prefix: str, root: Path, width: int = 0, height: int = 0) -> Target:
    """Fill in a prefix's placeholders and find its folder below ``root``, which is made when it is missing.

    Placeholders are ``%width%``, ``%height%`` and the local time's ``%year%``, ``%month%``, ``%day%``, ``%hour%``,
    ``%minute%`` and ``%second%``.
    Raises Exception, ComfyUI's own type and words, for a prefix that leaves ``root``, also through a symbolic link.
    """
    if "%" in prefix:
        now = time.localtime()
        filled = {
            "width": f"{width}",
            "height": f"{height}",
            "year": f"{now.tm_year}",
            "month": f"{now.tm_mon:02}",
            "day": f"{now.tm_mday:02}",
            "hour": f"{now.tm_hour:02}",
            "minute": f"{now.tm_min:02}",
            "second": f"{now.tm_sec:02}",
        }
        for key, value in filled.items():
            prefix = prefix.replace(f"%{key}%", value)
    normal = os.path.normpath(prefix)
    subfolder, name = os.path.split(normal)
    # normpath, not resolve: ".." in a prefix is judged by its words, as ComfyUI does; links are judged below.
    folder = Path(os.path.normpath(root / subfolder))
    if folder != root and root not in folder.parents:
        raise _outside(folder, root)
    if subfolder:
        real, real_root = folder.resolve(), root.resolve()
        if real != real_root and real_root not in real.parents:
            raise _outside(real, real_root)
    return Target(folder, subfolder, name)


def _outside(folder: Path, root: Path) -> Exception:
    message = (
        "**** ERROR: Saving image outside the output folder is not allowed."
        f"\n full_output_folder: {folder}"
        f"\n         output_dir: {root}"
        f"\n         commonpath: {os.path.commonpath((root, folder))}"
    )
    logger.error(message)
    return Exception(message)


class Counters:
    """The highest number given to each name, remembered so that a save does not list a folder of 50,000 files.

    A remembered number holds while its file is still there and the next one is free. It is a guess only: `publish` takes a
    number by creating its file, which fails when any process was faster, and then goes on to the next.
    """

    def __init__(self) -> None:
        self._last: OrderedDict[tuple[Path, str], tuple[int, str]] = OrderedDict()

    def next(self, target: Target) -> int:
        """Return the number to try first: one more than the highest in the folder, as ComfyUI counts."""
        known = self._last.get((target.folder, target.name))
        if known is not None:
            last, file = known
            if (target.folder / file).exists():
                return last + 1
        return highest(target) + 1

    def taken(self, target: Target, counter: int, file: str) -> None:
        """Remember the number of a file that was written."""
        key = (target.folder, target.name)
        self._last[key] = (counter, file)
        self._last.move_to_end(key)
        while len(self._last) > _REMEMBERED:
            self._last.popitem(last=False)


def highest(target: Target) -> int:
    """Return the highest number among ``<name>_<number>_…`` in the folder, 0 when there is none."""
    stem = re.escape(target.name).replace("%batch_num%", r"\d+")
    pattern = re.compile(rf"{stem}_(\d+)_")
    best = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(target.folder) as entries:
        for entry in entries:
            found = pattern.match(entry.name)
            if found:
                best = max(best, int(found[1]))
    return best


_counters = Counters()


def save(
    target: Target, suffix: str, write: Callable[[BinaryIO], object], batch_number: int = 0
) -> str:
    """Write a file under the next free name of the target and return the name.

    ``write`` gets a temporary file in the same folder, which appears under its final name when it is complete: readers see the
    whole file or none, and two writers never get the same name.
    """
    temporary = target.folder / f".{secrets.token_hex(8)}.part"
    try:
        sink = temporary.open("xb")
    except FileNotFoundError:
        target.folder.mkdir(parents=True, exist_ok=True)
        sink = temporary.open("xb")
    try:
        with sink:
            write(sink)
        return _publish(temporary, target, suffix, batch_number)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _publish(temporary: Path, target: Target, suffix: str, batch_number: int) -> str:
    counter = _counters.next(target)
    stem = target.name.replace("%batch_num%", str(batch_number))
    attempts = 0
    while True:
        file = f"{stem}_{counter:05}_{suffix}"
        try:
            _link_new(temporary, target.folder / file)
        except FileExistsError:
            attempts += 1
            counter = counter + 1 if attempts % _STEPS else max(counter, highest(target)) + 1
            continue
        _counters.taken(target, counter, file)
        return file


def _link_new(source: Path, name: Path) -> None:
    """Give the file its name if the name is free; raises FileExistsError when it is not."""
    try:
        name.hardlink_to(source)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links: reserve the name, then replace the empty file.
        name.open("xb").close()
        source.replace(name)


def ui_entry(file: str, target: Target, folder_type: str) -> Mapping[str, str]:
    """Return how a file is named in ``executed`` messages and in the history."""
    return {"filename": file, "subfolder": target.subfolder, "type": folder_type}
