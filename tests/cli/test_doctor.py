"""`easel doctor`: what it finds on machines of all kinds."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from easel.cli import main
from easel.cli.doctor import Finding, Request, doctor, installation, machine

FAKE_TORCH = """
class cuda:
    is_available = staticmethod(lambda: {gpu})
    device_count = staticmethod(lambda: 1)
    get_device_name = staticmethod(lambda n: "NVIDIA A10")
class backends:
    pass
__version__ = "2.9.0"
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without settings, an environment without any."""
    monkeypatch.chdir(tmp_path)
    for name in ("EASEL_CONFIG", "COMFYUI_PATH", "EASEL_AGENT__STORE", "EASEL_AGENT__DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


def comfyui(folder: Path, torch: str | None = None) -> Path:
    """Make the outline of a ComfyUI, with an interpreter that has (or lacks) a torch."""
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text('__version__ = "0.3.64"\n')
    interpreter = folder / "venv" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    libraries = folder / "libraries"
    libraries.mkdir()
    if torch is not None:
        (libraries / "torch.py").write_text(torch)
    interpreter.write_text(f'#!/bin/sh\nPYTHONPATH={libraries} exec {sys.executable} -S "$@"\n')
    interpreter.chmod(0o755)
    return folder


def by_name(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    found = json.loads(capsys.readouterr().out)
    return {finding["name"]: finding for finding in found["findings"]}


def test_a_machine_without_anything_special(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = by_name(capsys)
    for name in ("Python", "Easel", "clock", "settings", "data directory", "progress store"):
        assert found[name]["status"] == "ok", found[name]
    for finding in found.values():
        assert finding["status"] == "ok" or finding["todo"], finding
    assert not list(Path.cwd().iterdir())  # looking changes nothing


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ok    Python         CPython 3.")
    assert out.endswith("\nnothing stands in the way of running Easel\n")


@pytest.mark.parametrize(
    ("torch", "status", "says"),
    [
        (FAKE_TORCH.format(gpu=True), "ok", "2.9.0 of"),
        (FAKE_TORCH.format(gpu=True), "ok", "runs on NVIDIA A10"),
        (FAKE_TORCH.format(gpu=False), "warn", "sees no GPU"),
        (None, "fail", "cannot import torch: ModuleNotFoundError"),
        ("raise ImportError('libcuda.so')", "fail", "ImportError: libcuda.so"),
    ],
)
def test_comfyui(
    torch: str | None, status: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = comfyui(tmp_path / "here", torch)
    assert main(["doctor", "--json", "--comfyui", str(folder)]) == (status == "fail")
    found = by_name(capsys)
    assert found["ComfyUI"]["found"] == f"0.3.64 in {folder}"
    assert found["torch"]["status"] == status
    assert says in found["torch"]["found"]


def test_comfyui_is_found_where_it_usually_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comfyui(tmp_path / "ComfyUI", FAKE_TORCH.format(gpu=True))
    main(["doctor", "--json"])
    assert by_name(capsys)["ComfyUI"]["found"] == "0.3.64 in ComfyUI"
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "gone"))
    assert main(["doctor", "--json"]) == 1
    assert "does not exist" in by_name(capsys)["ComfyUI"]["found"]


def test_a_folder_that_is_no_comfyui(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--comfyui", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "fail  ComfyUI" in out
    assert "-> name the folder that has main.py" in out
    assert "1 of " in out


def test_an_interpreter_that_cannot_be_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = comfyui(tmp_path / "c", "")
    assert main(["doctor", "--json", "--comfyui", str(folder), "--python", "/nonexistent"]) == 1
    assert "cannot be run" in by_name(capsys)["torch"]["found"]


def test_the_version_may_be_missing(tmp_path: Path) -> None:
    folder = comfyui(tmp_path / "c")
    (folder / "comfyui_version.py").unlink()
    assert installation.version(folder) is None
    (folder / "pyproject.toml").write_text('[project]\nname = "ComfyUI"\nversion = "0.4.1"\n')
    assert installation.version(folder) == "0.4.1"


@pytest.mark.parametrize(
    ("script", "status", "says"),
    [
        ("echo 'NVIDIA A10, 23028 MiB, 22500 MiB, 550.54'", "ok", "NVIDIA A10, 23028 MiB"),
        ("echo 'NVIDIA-SMI has failed because …'; exit 9", "warn", "has failed"),
        ("true", "warn", "nvidia-smi"),
    ],
)
def test_gpus(
    script: str, status: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (finding,) = machine.gpu(Request())
    assert finding.status == status
    assert says in finding.found


def test_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = machine.gpu(Request())
    assert finding.status == "warn"


@contextlib.contextmanager
def listening() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as port:
        assert not machine._free(port)
        assert f"(process {os.getpid()})" in machine._holder(port)
        with monkeypatch.context() as patch:
            patch.setattr(machine, "_free", lambda _: False)
            patch.setattr(machine, "agent_answers", lambda *_: False)
            findings = list(machine.ports(Request()))
        assert [finding.status for finding in findings] == ["warn", "warn"]
        assert "another --port" in (findings[0].todo or "")
    assert machine._free(port)


def test_settings_that_are_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "easel.toml").write_text("[agent]\nport = 'nine'\n")
    assert main(["doctor", "--json"]) == 1
    assert "agent.port" in by_name(capsys)["settings"]["found"]
    monkeypatch.setenv("EASEL_CONFIG", "gone.toml")
    assert main(["doctor", "--json"]) == 1
    assert "gone.toml" in by_name(capsys)["settings"]["found"]


def test_a_data_directory_in_the_way(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert main(["doctor", "--json", "--data-dir", str(tmp_path / "file" / "data")]) == 1
    assert "is a file" in by_name(capsys)["data directory"]["found"]


@pytest.mark.parametrize(("free", "status"), [(10**8, "fail"), (2 * 10**9, "warn"), (10**11, "ok")])
def test_disk_space(
    free: int, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    (finding,) = installation._data_directory(tmp_path / "new")
    assert finding.status == status


@pytest.mark.parametrize(
    ("store", "status"),
    [
        ("sqlite:///good.db", "ok"),
        ("sqlite:///new.db", "ok"),
        ("sqlite:///diary.db", "fail"),
        ("oracle://x", "fail"),
        ("mysql://u:sekret@127.0.0.1:1/x", "fail"),
    ],
)
def test_progress_stores(
    store: str, status: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sqlite3.connect(tmp_path / "good.db").close()
    (tmp_path / "diary.db").write_text("Dear diary, " * 100)
    assert main(["doctor", "--json", "--store", store]) == (status == "fail")
    finding = by_name(capsys)["progress store"]
    assert finding["status"] == status
    assert "sekret" not in finding["found"]
    assert not (tmp_path / "new.db").exists()


def test_a_check_that_breaks_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def clock(_: Request) -> Iterator[Finding]:
        raise OSError("no clock")

    monkeypatch.setattr(machine, "clock", clock)
    assert doctor(Request(), as_json=True) == 0
    found = by_name(capsys)
    assert found["clock"]["found"] == "could not be looked at: OSError: no clock"
    assert "ports" not in found
    assert "port 9000" in found
