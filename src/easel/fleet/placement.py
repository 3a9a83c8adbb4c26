"""Which device an instance gets: one instance at a time on each device, the one that waits longest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from easel.fleet.runtime import Device, Runtime
from easel.services.model import Instance, ServiceSpec
from easel.services.store import ServiceStore

WORDS = {"gpu": "GPU", "cpu": "CPU slot"}
WITHOUT_DEVICE = frozenset({"failed", "stopped"})


class Soon(str):
    """Why there is no device at this moment, where there will be one in a moment."""

    __slots__ = ()


def kind_for(spec: ServiceSpec, devices: Sequence[Device]) -> Literal["gpu", "cpu"]:
    """Return what kind of device a specification runs on, here.

    The built-in engine without ``gpus`` takes a CPU slot, everything else a GPU; a machine that has none of the one kind
    gives the other, so that any service can be tried anywhere.
    """
    wished: Literal["gpu", "cpu"] = (
        "cpu" if spec.engine.kind == "builtin" and not spec.gpus else "gpu"
    )
    other: Literal["gpu", "cpu"] = "cpu" if wished == "gpu" else "gpu"
    kinds = {device.kind for device in devices}
    return other if wished not in kinds and other in kinds else wished


def place(
    kind: Literal["gpu", "cpu"],
    devices: Sequence[Device],
    users: Mapping[str, Instance],
    ahead: int = 0,
) -> Device | str:
    """Return a free device, or in words why there is none (`Soon` when one is about to be free).

    ``users``: device id → the instance that has it. ``ahead``: how many instances waited longer for this kind of device; as
    many free ones are left to them. Pure.
    """
    fitting = [device for device in devices if device.kind == kind]
    free = [device for device in fitting if device.id not in users]
    if len(free) > ahead:
        return free[0]
    if free:
        return Soon("instances that waited longer come first")
    holders = [users[device.id] for device in fitting]
    if any(one.target == "stopped" for one in holders):
        return Soon("a device is being freed")
    word = WORDS[kind]
    if not fitting:
        return f"this machine has no {word}"
    names = ", ".join(sorted({one.service for one in holders}))
    return f"no {word} is free: {len(fitting)} of {len(fitting)} in use by {names}"


class Places:
    """The devices of a runtime and who has them."""

    def __init__(self, store: ServiceStore, runtime: Runtime) -> None:
        self._store = store
        self._runtime = runtime

    async def find(self, spec: ServiceSpec, instance: Instance) -> Device | str:
        """Return the device an instance is to be started on (its own, where it has one), or why it must wait."""
        devices = await self._runtime.devices()
        own = next((device for device in devices if device.id == instance.device), None)
        if own is not None:
            return own
        kind = kind_for(spec, devices)
        others = [
            one
            for one in await self._store.instances()
            if one.runtime == self._runtime.name and one.id != instance.id
        ]
        users = {one.device: one for one in others if one.device and not _without(one)}
        ahead = 0
        for one in others:
            if _waits(one) and (one.created, one.id) < (instance.created, instance.id):
                revision = await self._store.revision(one.service, one.revision)
                ahead += kind_for(revision.spec, devices) == kind
        return place(kind, devices, users, ahead)


def _without(instance: Instance) -> bool:
    return instance.status in WITHOUT_DEVICE


def _waits(instance: Instance) -> bool:
    return instance.status == "pending" and instance.target == "running"
