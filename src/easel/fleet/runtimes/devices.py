"""What instances of this machine can be placed on: its GPUs, else slots of its CPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from easel.fleet.runtime import Device
from easel.settings import FleetSettings

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Which GPUs this platform may use, where somebody else divides the machine, such as a batch scheduler."""


class Gpu(NamedTuple):
    """One GPU, or one part (MIG) of it, as the driver names it."""

    number: str
    """Its number; that of a part is ``GPU:PART``, as nvidia-smi writes it."""
    device: Device

    def is_called(self, word: str) -> bool:
        """Whether a word means it: its index (or that of the GPU it is a part of), its UUID or the beginning of it, its name."""
        uuid, whole = self.device.id, self.number.partition(":")[0]
        begins = len(word) > len("GPU-") and uuid.startswith(word)
        return begins or word in (self.number, whole, self.device.name)


def devices(settings: FleetSettings, environ: Mapping[str, str] = os.environ) -> list[Device]:
    """Return the GPUs that NVML shows; on a machine without any, its CPU slots.

    ``fleet.devices`` chooses among the GPUs, else CUDA_VISIBLE_DEVICES does. Asks the driver: call it in a thread.
    """
    found = gpus()
    if settings.devices:
        return [one.device for one in _chosen(found, settings.devices)]
    if VISIBLE in environ:
        words = [word.strip() for word in environ[VISIBLE].split(",")]
        # As CUDA reads it: from the first word that means nothing on, nothing is visible.
        visible = takewhile(lambda word: any(one.is_called(word) for one in found), words)
        found = _chosen(found, list(visible))
    if found:
        return [one.device for one in found]
    return [Device(id=f"cpu-{number}", kind="cpu") for number in range(settings.cpu_slots)]


def _chosen(found: Sequence[Gpu], words: Sequence[str]) -> list[Gpu]:
    chosen = [one for one in found if any(one.is_called(word) for word in words)]
    missing = [word for word in words if not any(one.is_called(word) for one in found)]
    if missing:
        log.warning("no such GPU: %s", ", ".join(missing))
    return chosen


def gpus() -> list[Gpu]:
    """Return every GPU of the machine, for one that is divided (MIG) its parts; none without NVIDIA's driver."""
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
        return list(_listed(pynvml))
    finally:
        pynvml.nvmlShutdown()


def _listed(nvml: Any) -> Iterator[Gpu]:
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        log.warning("the GPUs cannot be listed: %s", error)
        return
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            parts = list(_parts(nvml, index, handle))
            yield from parts if _is_divided(nvml, handle) else [_gpu(nvml, str(index), handle)]
        except nvml.NVMLError as error:  # one that is lost does not hide the others
            log.warning("GPU %d cannot be used: %s", index, error)


def _is_divided(nvml: Any, handle: Any) -> bool:
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:  # most GPUs cannot be
        return False
    return bool(current)


def _parts(nvml: Any, index: int, handle: Any) -> Iterator[Gpu]:
    if not _is_divided(nvml, handle):
        return
    for part in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            found = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, part)
        except nvml.NVMLError:  # there may be fewer than the most
            continue
        yield _gpu(nvml, f"{index}:{part}", found)


def _gpu(nvml: Any, index: str, handle: Any) -> Gpu:
    device = Device(
        id=_text(nvml.nvmlDeviceGetUUID(handle)),
        kind="gpu",
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
    )
    return Gpu(index, device)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
