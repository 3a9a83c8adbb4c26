"""The vendor's scenario deployment: a service in a few words, and changing some of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from easel.errors import InvalidSpec
from easel.services.model import Edition, EngineSpec, Mount, ServiceSpec

DATA_PATH = "/mnt/data"
"""Where a scenario's storage is mounted, as at the vendor's."""
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", re.IGNORECASE)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody gave; None leaves a thing as it is, or at its default."""

    name: str
    edition: Edition | None = None
    storage: str | None = None
    engine: str | None = None
    instances: int | None = None
    packs: Sequence[str] | None = None
    env: Mapping[str, str] | None = None
    memory: str | None = None
    web_port: int | None = None


def scenario(wishes: Wishes, current: ServiceSpec | None = None) -> ServiceSpec:
    """Return the specification. ``current`` is what an update starts from. Raises InvalidSpec with every fault."""
    faults: list[tuple[str, str]] = []
    edition = wishes.edition or (current.edition if current is not None else "standard")
    spec = current or ServiceSpec(
        name=wishes.name,
        edition=edition,
        engine=EngineSpec(kind="comfyui"),
        data_path=DATA_PATH,
        webui=edition == "standard",
    )
    engine = _engine(wishes, spec.engine, faults)
    mounts = list(spec.mounts)
    if wishes.storage is not None:
        if not wishes.storage.startswith("/"):
            faults.append(("storage", "must be an absolute path of the platform's machine"))
        path = spec.data_path or DATA_PATH
        mounts = [one for one in mounts if one.mount_path != path]
        mounts.append(Mount(mount_path=path, source=wishes.storage))
        spec = msgspec.structs.replace(spec, data_path=path)
    memory = spec.memory_bytes
    if wishes.memory is not None:
        memory = parse_size(wishes.memory)
        if memory is None:
            faults.append(("memory", f"{wishes.memory!r} is not a size such as 16G"))
    if faults:
        raise InvalidSpec(faults)
    return msgspec.structs.replace(
        spec,
        name=wishes.name,
        edition=edition,
        engine=engine,
        mounts=mounts,
        instances=spec.instances if wishes.instances is None else wishes.instances,
        env={**spec.env, **wishes.env} if wishes.env is not None else spec.env,
        memory_bytes=memory,
        web_port=wishes.web_port or spec.web_port,
    )


def _engine(wishes: Wishes, current: EngineSpec, faults: list[tuple[str, str]]) -> EngineSpec:
    """``comfyui``, ``comfyui:NAME``, ``comfyui:FOLDER`` or ``builtin``, with packs for the latter."""
    engine = current
    if wishes.engine is not None:
        kind, _, which = wishes.engine.partition(":")
        if kind == "builtin" and not which:
            kept = current.arguments if current.kind == "builtin" else []
            engine = EngineSpec(kind="builtin", arguments=kept)
        elif kind == "comfyui":
            kept = current.arguments if current.kind == "comfyui" else []
            engine = msgspec.structs.replace(
                current, kind="comfyui", comfyui=which or None, arguments=kept, command=[]
            )
        else:
            faults.append(
                (
                    "engine",
                    f"{wishes.engine!r} is none of builtin, comfyui, comfyui:NAME, comfyui:FOLDER",
                )
            )
    if wishes.packs is not None:
        if engine.kind != "builtin":
            faults.append(("packs", "are for the built-in engine; ComfyUI has custom_nodes"))
        arguments = [word for pack in wishes.packs for word in ("--pack", pack)]
        engine = msgspec.structs.replace(engine, arguments=arguments)
    return engine


def parse_size(text: str) -> int | None:
    """Return the bytes of ``16G``, ``512M``, ``1.5Gi`` or a plain number; None for anything else."""
    match = SIZE.fullmatch(text.strip())
    if match is None:
        return None
    return int(float(match[1]) * UNITS[match[2].upper()])
