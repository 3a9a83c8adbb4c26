"""Storage of the vendor's JSON as folders of this machine, and whether they are there."""

from __future__ import annotations

import re
from pathlib import Path

from easel.services.model import Mount, ServiceSpec
from easel.services.reading import Document, Section

MEGABYTE = 1024 * 1024
OSS = re.compile(r"oss://([^/]+)(/.*)?")
KINDS = ("oss", "nfs", "folder", "empty_dir", "git", "dataset")
HERE = 'give a folder of this machine instead: {"folder": {"path": ...}}'


def read_mounts(root: Section, document: Document, oss_root: Path | None) -> list[Mount]:
    """Read every entry of ``storage``; faults are noted in the document."""
    found = []
    with root.sections("storage") as entries:
        for entry in entries:
            path = entry.text("mount_path", pattern=r"/\S*", words="must be an absolute path")
            if not entry.has("mount_path"):
                entry.fault("mount_path", "is missing")
            given = [kind for kind in KINDS if entry.has(kind)]
            if len(given) != 1:
                document.fault(entry.path, f"needs exactly one of {', '.join(KINDS)}")
            mount = _mount(entry, path or "/", oss_root)
            if mount is not None:
                found.append(mount)
    paths = [mount.mount_path for mount in found]
    for path in sorted({one for one in paths if paths.count(one) > 1}):
        document.fault("storage", f"{path} is mounted twice")
    return found


def _mount(entry: Section, path: str, oss_root: Path | None) -> Mount | None:
    found = None
    if entry.has("oss"):
        with entry.section("oss") as oss:
            source = _bucket(oss, oss_root)
            read_only = oss.flag("readOnly")
            oss.ignored("endpoint", "the bucket is a folder of this machine")
            found = Mount(mount_path=path, source=source, read_only=bool(read_only))
    if entry.has("nfs"):
        with entry.section("nfs") as nfs:
            server, folder = (
                nfs.text("server"),
                nfs.text("path", pattern=r"/.*", words="must be absolute"),
            )
            read_only = nfs.flag("readOnly")
            if folder is None:
                nfs.fault(
                    "path", "is missing: the folder where the share is mounted on this machine"
                )
            if server is not None:
                nfs.warn(
                    "server", f"is not mounted by Easel: {folder} must be mounted here already"
                )
            found = Mount(mount_path=path, source=folder, read_only=bool(read_only))
    if entry.has("folder"):
        with entry.section("folder") as own:
            folder = own.text("path", pattern=r"/.*", words="must be an absolute path")
            if folder is None and not own.has("path"):
                own.fault("path", "is missing")
            read_only = own.flag("readOnly")
            found = Mount(mount_path=path, source=folder, read_only=bool(read_only))
    if entry.has("empty_dir"):
        with entry.section("empty_dir") as empty:
            medium = empty.text("medium")
            size = empty.number("size_limit", least=0)
            if size is not None:
                empty.warn("size_limit", "is not enforced for folders of this machine")
            found = Mount(
                mount_path=path,
                source=None,
                memory=medium == "memory",
                size_limit_bytes=int(size * MEGABYTE) if size is not None else None,
            )
    for kind in ("git", "dataset"):
        if entry.has(kind):
            entry.fault(kind, f"cannot be mounted here: {HERE}")
            entry.raw(kind)
    return found


def _bucket(oss: Section, oss_root: Path | None) -> str | None:
    """The folder that stands for a bucket's: ``oss://bucket/dir`` is ``<oss_root>/bucket/dir``; a folder is itself."""
    text = oss.text("path")
    if text is None:
        oss.fault("path", "is missing")
        return None
    if text.startswith("file:///"):
        return text.removeprefix("file://")
    if text.startswith("/"):
        return text
    match = OSS.fullmatch(text)
    if match is None:
        oss.fault("path", "must be oss://bucket/folder/ or a folder of this machine")
        return None
    parts = [part for part in (match[2] or "").split("/") if part]
    if ".." in (match[1], *parts):
        oss.fault("path", "must not contain ..")
        return None
    if oss_root is None:
        oss.fault(
            "path", "no folder stands for buckets here: set oss_root (EASEL_OSS_ROOT), or " + HERE
        )
        return None
    return str(oss_root.joinpath(match[1], *parts))


def missing_mounts(spec: ServiceSpec) -> list[tuple[str, str]]:
    """Return the mounts whose folder is not there and may not be made: path and words. Looks at the disk.

    A writable data directory is made at the first start; everything else must exist.
    """
    found = []
    for index, mount in enumerate(spec.mounts):
        if mount.source is None or (mount.mount_path == spec.data_path and not mount.read_only):
            continue
        if not Path(mount.source).is_dir():
            words = f"the folder {mount.source} for {mount.mount_path} is not there"
            found.append((f"storage[{index}]", words))
    return found
