"""What the machine has, as its driver says: a module in the place of NVIDIA's bindings."""

# ruff: noqa: N802 - the names are the driver's

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from easel.fleet.runtimes.devices import devices
from easel.settings import FleetSettings

GIB = 2**30
SLOTS = ["cpu-0", "cpu-1", "cpu-2"]


class NVMLError(Exception):
    """The driver refuses."""


class Nvml(ModuleType):
    """As much of pynvml as is asked; ``parts`` of a GPU are None where it cannot be divided."""

    NVMLError = NVMLError

    def __init__(self, *parts: list[str] | None, driver: bool = True, text: bool = True) -> None:
        super().__init__("pynvml")
        self.parts = parts
        self.driver = driver
        self.text = text
        self.lost: set[int] = set()
        self.opened = 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise NVMLError("Driver Not Loaded")
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        assert self.opened
        return len(self.parts)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        if index in self.lost:
            raise NVMLError("GPU is lost")
        return SimpleNamespace(index=index, uuid=f"GPU-{index}000-aaaa", parts=self.parts[index])

    def nvmlDeviceGetMigMode(self, gpu: Any) -> tuple[int, int]:
        if gpu.parts is None:
            raise NVMLError("Not Supported")
        return int(bool(gpu.parts)), 0

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: Any) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: Any, part: int) -> Any:
        try:
            return SimpleNamespace(uuid=gpu.parts[part], index=gpu.index)
        except IndexError:
            raise NVMLError("Not Found") from None

    def nvmlDeviceGetUUID(self, gpu: Any) -> str | bytes:
        return str(gpu.uuid) if self.text else str(gpu.uuid).encode()

    def nvmlDeviceGetName(self, gpu: Any) -> str | bytes:
        return "Pretend 24G" if self.text else b"Pretend 24G"

    def nvmlDeviceGetMemoryInfo(self, gpu: Any) -> Any:
        return SimpleNamespace(total=24 * GIB)


def ids(monkeypatch: pytest.MonkeyPatch, nvml: Nvml | None, *wanted: str, **env: str) -> list[str]:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    settings = FleetSettings(cpu_slots=len(SLOTS), devices=wanted)
    found = devices(settings, env)
    assert nvml is None or nvml.opened == 0, "the driver is let go"
    kinds = {one.kind for one in found}
    assert len(kinds) <= 1
    return [one.id for one in found]


@pytest.mark.parametrize("nvml", [None, Nvml(driver=False), Nvml()])
def test_slots_of_the_cpu_without_gpus(monkeypatch: pytest.MonkeyPatch, nvml: Nvml | None) -> None:
    assert ids(monkeypatch, nvml) == SLOTS


@pytest.mark.parametrize("text", [True, False])
def test_every_gpu(monkeypatch: pytest.MonkeyPatch, text: bool) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(None, [], text=text))
    found = devices(FleetSettings(), {})
    assert [(one.id, one.kind, one.name, one.memory_bytes) for one in found] == [
        ("GPU-0000-aaaa", "gpu", "Pretend 24G", 24 * GIB),
        ("GPU-1000-aaaa", "gpu", "Pretend 24G", 24 * GIB),
    ]


def test_one_that_is_lost_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml(None, None)
    nvml.lost = {0}
    assert ids(monkeypatch, nvml) == ["GPU-1000-aaaa"]


def test_the_parts_of_a_divided_one(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml(["MIG-a", "MIG-b"], None)
    assert ids(monkeypatch, nvml) == ["MIG-a", "MIG-b", "GPU-1000-aaaa"]
    assert ids(monkeypatch, nvml, "0") == ["MIG-a", "MIG-b"]
    assert ids(monkeypatch, nvml, "0:1") == ["MIG-b"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (("1",), ["GPU-1000-aaaa"]),
        (("GPU-0000-aaaa",), ["GPU-0000-aaaa"]),
        (("GPU-1",), ["GPU-1000-aaaa"]),
        (("Pretend 24G",), ["GPU-0000-aaaa", "GPU-1000-aaaa"]),
        (("1", "7"), ["GPU-1000-aaaa"]),
        (("7",), []),
    ],
)
def test_chosen_by_the_settings(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wanted: tuple[str, ...],
    found: list[str],
) -> None:
    assert ids(monkeypatch, Nvml(None, None), *wanted, CUDA_VISIBLE_DEVICES="0") == found
    assert ("no such GPU: 7" in caplog.text) is ("7" in wanted)


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("1", ["GPU-1000-aaaa"]),
        ("0, 1", ["GPU-0000-aaaa", "GPU-1000-aaaa"]),
        ("1,9,0", ["GPU-1000-aaaa"]),
        ("GPU-1000", ["GPU-1000-aaaa"]),
        ("", SLOTS),
        ("-1", SLOTS),
        ("NoDevFiles", SLOTS),
    ],
)
def test_what_a_scheduler_leaves_to_the_platform(
    monkeypatch: pytest.MonkeyPatch, visible: str, found: list[str]
) -> None:
    assert ids(monkeypatch, Nvml(None, None), CUDA_VISIBLE_DEVICES=visible) == found
