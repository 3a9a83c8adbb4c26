"""Putting a service's own words into this machine's terms."""

from __future__ import annotations

import re
from collections.abc import Sequence

from easel.services.model import Mount


def realise(text: str, mounts: Sequence[Mount], container_port: int, port: int) -> str:
    """Replace mount paths (as whole path prefixes) by their folders, and ``{port}`` or the spec's port by the instance's."""
    for mount in sorted(mounts, key=lambda one: len(one.mount_path), reverse=True):
        if mount.source is not None:
            text = _replaced(text, mount.mount_path.rstrip("/"), mount.source.rstrip("/"))
    text = text.replace("{port}", str(port))
    return str(port) if container_port and text == str(container_port) else text


def _replaced(text: str, path: str, folder: str) -> str:
    """Replace a path where it is one, or the beginning of one."""
    return re.sub(rf"(?<![\w./-]){re.escape(path)}(?=/|$|[\s\"':;,)])", lambda _: folder, text)
