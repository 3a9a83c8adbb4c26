"""Users: who a request is from, and the list of them (``--multi-user`` splits settings and userdata, nothing else)."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from pathlib import Path

from aiohttp import web

from easel.engine.folders import Folders
from easel.engine.server.errors import UnknownUser
from easel.engine.server.files import write_atomically
from easel.errors import BadRequest

DEFAULT = "default"
PLAIN_ID = re.compile(r"[\w-][\w.-]*")
"""What a user's id, which is a folder's name too, may look like."""


class DuplicateName(BadRequest):
    """A user of this name exists."""


class Users:
    """The users of an engine: only ``default``, or with ``multi_user`` those of ``users.json``.

    Whoever sends a user's id in the ``comfy-user`` header is that user: ComfyUI's protocol has no authentication.
    """

    def __init__(self, folders: Folders, *, multi_user: bool) -> None:
        self._folders = folders
        self._file = folders.user / "users.json"
        self.multi_user = multi_user
        self._lock = asyncio.Lock()
        self._settings_locks: dict[str, asyncio.Lock] = {}
        self._names: dict[str, str] = _read_names(self._file) if multi_user else {DEFAULT: DEFAULT}

    def of(self, request: web.Request) -> str:
        """Return the id of the user a request is from.

        Raises UnknownUser.
        """
        user = request.headers.get("comfy-user", DEFAULT) if self.multi_user else DEFAULT
        if user not in self._names:
            raise UnknownUser("no such user", hint="send the id of a user as header comfy-user")
        return user

    def folder(self, user: str) -> Path:
        """Return a user's own folder; it may not exist yet. Ids that are no plain folder name are never taken in."""
        return self._folders.user / user

    def settings_lock(self, user: str) -> asyncio.Lock:
        """Return the lock under which this user's settings are read, changed and written."""
        return self._settings_locks.setdefault(user, asyncio.Lock())

    def listing(self) -> dict[str, str]:
        """Return names by id."""
        return dict(self._names)

    async def add(self, name: str) -> str:
        """Add a user and return the new id.

        Raises BadRequest when the name is blank or taken.
        """
        name = name.strip()
        if not name:
            raise BadRequest("username not provided")
        async with self._lock:
            if name in self._names.values():
                raise DuplicateName("Duplicate username.")
            user = f"{re.sub('[^a-zA-Z0-9_-]+', '-', name)[:100]}_{uuid.uuid4()}"
            names = {**self._names, user: name}
            await asyncio.to_thread(write_atomically, self._file, json.dumps(names).encode())
            self._names = names
        return user


def _read_names(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    names = json.loads(file.read_text())
    return {user: str(name) for user, name in names.items() if PLAIN_ID.fullmatch(user)}
