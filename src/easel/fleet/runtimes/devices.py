"""What instances of this machine can be placed on: its GPUs, else slots of its CPU."""

from __future__ import annotations

import logging

from easel.fleet.runtime import Device
from easel.settings import FleetSettings

log = logging.getLogger(__name__)


def devices(settings: FleetSettings) -> list[Device]:
    """Return the GPUs that NVML shows (``fleet.devices`` chooses among them); on a machine without any, its CPU slots.

    Asks the driver: call it in a thread.
    """
    found = gpus()
    if settings.devices:
        wanted = set(settings.devices)
        chosen = [one for one in found if wanted & {one.id, one.name, one.uuid}]
        missing = wanted - {key for one in chosen for key in (one.id, one.name, one.uuid)}
        if missing:
            log.warning("no such GPU: %s", ", ".join(sorted(missing)))
        return [one.device for one in chosen]
    if found:
        return [one.device for one in found]
    return [Device(id=f"cpu-{number}", kind="cpu") for number in range(settings.cpu_slots)]


class Gpu:
    """One GPU as the driver names it."""

    def __init__(self, index: int, uuid: str, name: str, memory: int) -> None:
        self.id = str(index)
        self.uuid = uuid
        self.name = name
        self.device = Device(id=uuid, kind="gpu", name=name, memory_bytes=memory)


def gpus() -> list[Gpu]:
    """Return every GPU of the machine; none without NVIDIA's driver."""
    try:
        import pynvml  # noqa: PLC0415
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.debug("no GPU: %s", error)
        return []
    try:
        return [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        log.warning("the GPUs cannot be listed: %s", error)
        return []
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: object, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)  # type: ignore[attr-defined]
    uuid = nvml.nvmlDeviceGetUUID(handle)  # type: ignore[attr-defined]
    name = nvml.nvmlDeviceGetName(handle)  # type: ignore[attr-defined]
    memory = nvml.nvmlDeviceGetMemoryInfo(handle).total  # type: ignore[attr-defined]
    return Gpu(index, _text(uuid), _text(name), int(memory))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
