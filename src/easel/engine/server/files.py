"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

from easel.errors import BadRequest


def write_atomically(path: Path, content: bytes | BinaryIO) -> None:
    """Write a file beside its final name, then rename it into place; the folder is made if missing.

    Raises BadRequest when the name cannot be one (too long, a folder, a file where a folder is needed).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, staged = tempfile.mkstemp(dir=path.parent, prefix=".easel-", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    shutil.copyfileobj(content, file)
            Path(staged).chmod(0o666 & ~_UMASK)
            Path(staged).replace(path)
        except BaseException:
            Path(staged).unlink(missing_ok=True)
            raise
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise BadRequest(f"{path.name!r} cannot be written: {error.strerror}") from None
    except OSError as error:
        if error.errno in NAME_ERRORS:
            raise BadRequest(f"{path.name[:40]!r} is no file name: {error.strerror}") from None
        raise


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _read_umask()
"""mkstemp makes 0600 files; ours follow the umask. Read once, at import: reading it means setting it for a moment."""
NAME_ERRORS = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ})
"""What the system says to a name that cannot be a file's."""
