"""The platform's folder: one process at a time, the admin token, and where it can be reached."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easel.errors import ConfigurationError

STATE_FILE = "platform.json"
ADMIN_TOKEN_FILE = "admin-token"  # noqa: S105 - a file's name


@contextlib.contextmanager
def opened(home: Path) -> Iterator[None]:
    """Make the folder (mode 0700) and keep other platforms out of it until the block ends.

    Raises ConfigurationError when another one has it, or it cannot be used.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (home / "lock").open("a+")
    except OSError as error:
        raise ConfigurationError(
            f"the platform's folder {home} cannot be used: {error.strerror}",
            hint="choose another with --home",
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(
                f"another platform runs in {home} (process {read_state(home).get('pid', '?')})",
                hint="stop it, or choose another folder with --home",
            ) from None
        yield


def read_state(home: Path) -> dict[str, Any]:
    """Return what the last platform wrote of itself: ``{url, port, pid}``, or nothing."""
    with contextlib.suppress(OSError, ValueError):
        state = json.loads((home / STATE_FILE).read_text())
        if isinstance(state, dict):
            return state
    return {}


def write_state(home: Path, *, url: str, port: int) -> None:
    """Leave word where this platform is: commands and agents look there."""
    new = home / f".{STATE_FILE}.new"
    new.write_text(json.dumps({"url": url, "port": port, "pid": os.getpid()}) + "\n")
    new.replace(home / STATE_FILE)


def admin_token(home: Path) -> str:
    """Return the admin token; the first start draws it (256 bits) and keeps it for its user alone (mode 0600).

    Raises ConfigurationError when the file cannot be read or is empty.
    """
    path = home / ADMIN_TOKEN_FILE
    try:
        with contextlib.suppress(FileExistsError):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(file, "w") as sink:
                sink.write(secrets.token_urlsafe(32) + "\n")
        token = path.read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"the admin token {path}: {error.strerror}") from error
    if not token:
        raise ConfigurationError(
            f"the admin token {path} is empty", hint="remove the file; the next start draws another"
        )
    return token
