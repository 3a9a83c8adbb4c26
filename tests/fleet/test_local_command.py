"""The engine's part of an instance's command line."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from easel.errors import InstanceFailed
from easel.fleet.runtime import Launch
from easel.fleet.runtimes import command
from easel.fleet.runtimes.command import (
    GPU_MEMORY_FLAGS,
    PORTS,
    builtin_variables,
    engine_command,
    free_port,
)
from easel.services.installations import Installation, Installations
from easel.services.model import EngineSpec, Mount
from tests.fleet.stage import spec

DATA = Path("/srv/data")
FOLDER = Path("/home-of-platform/instances/draw-1")


def launch(
    kind: str, *words: str, device: str | None = None, edition: str = "standard", **fields: Any
) -> Launch:
    argument = "command" if kind == "command" else "arguments"
    engine = EngineSpec(kind=kind, **{argument: list(words)})  # type: ignore[arg-type]
    return Launch(
        instance="draw-1",
        service="draw",
        spec=spec(engine=engine, edition=edition, **fields),
        device=device,
        gateway_url="http://gateway",
        token="t",
    )


@pytest.fixture
def installations(tmp_path: Path) -> Installations:
    """One installation of ComfyUI, in use."""
    folder = tmp_path / "ComfyUI"
    folder.mkdir()
    (folder / "main.py").touch()
    found = Installations(tmp_path / "home")
    found.save(Installation(name="one", folder=folder, python=Path(sys.executable)))
    return found


def engine(
    launched: Launch, installations: Installations, mounts: list[Mount] | None = None
) -> list[str]:
    return engine_command(
        launched,
        folder=FOLDER,
        data=DATA,
        mounts=mounts or [],
        installations=installations,
        python=None,
    )


def value(words: list[str], flag: str) -> str:
    assert words.count(flag) == 1, words
    return words[words.index(flag) + 1]


def test_comfyui_gets_what_is_the_platforms_to_say(installations: Installations) -> None:
    words = engine(launch("comfyui", "--preview-method", "auto", device="GPU-1"), installations)
    assert words[:2] == ["--", sys.executable]
    assert words[2].endswith("ComfyUI/main.py")
    assert value(words, "--base-directory") == str(DATA)
    assert value(words, "--listen") == "127.0.0.1"
    assert int(value(words, "--port")) in PORTS
    assert FOLDER in Path(value(words, "--temp-directory")).parents
    assert value(words, "--database-url") == f"sqlite:///{FOLDER}/engine/comfyui.db"
    assert value(words, "--preview-method") == "auto"
    assert "--disable-auto-launch" in words
    assert "--cpu" not in words
    assert "--output-directory" not in words


def test_instances_that_save_at_a_time_save_apart(installations: Installations) -> None:
    words = engine(launch("comfyui", edition="api"), installations)
    assert FOLDER in Path(value(words, "--output-directory")).parents


@pytest.mark.parametrize("flag", [None, "--cpu", *sorted(GPU_MEMORY_FLAGS)])
def test_without_a_gpu_comfyui_computes_on_the_cpu(
    flag: str | None, installations: Installations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "other_accelerator", lambda: False)
    wanted = [flag] if flag else []
    on_cpu = engine(launch("comfyui", *wanted, "--cache-lru", "3"), installations)
    assert on_cpu.count("--cpu") == 1
    assert not set(on_cpu) & GPU_MEMORY_FLAGS, "ComfyUI refuses them together with --cpu"
    assert value(on_cpu, "--cache-lru") == "3"
    on_gpu = engine(launch("comfyui", *wanted, device="GPU-1"), installations)
    assert on_gpu[-1:] == (wanted or on_gpu[-1:])
    monkeypatch.setattr(command, "other_accelerator", lambda: True)
    assert engine(launch("comfyui"), installations).count("--cpu") == 0


def test_paths_of_arguments_are_translated(installations: Installations) -> None:
    mounts = [Mount(mount_path="/mnt/data", source="/srv/nas")]
    words = engine(
        launch("comfyui", "--extra-model-paths-config", "/mnt/data/more.yaml"),
        installations,
        mounts,
    )
    assert value(words, "--extra-model-paths-config") == "/srv/nas/more.yaml"
    words = engine(
        launch("command", "serve", "/mnt/data/x", "--port", "9000", "--url={port}", port=9000),
        installations,
        mounts,
    )
    assert words[:3] == ["--", "serve", "/srv/nas/x"]
    port = value(words, "--port")
    assert port != "9000"
    assert words[-1] == f"--url={port}"


def test_missing_comfyui(tmp_path: Path) -> None:
    with pytest.raises(InstanceFailed) as caught:
        engine(launch("comfyui"), Installations(tmp_path))
    assert caught.value.reason == "ComfyUIMissing"
    assert "easel comfyui install" in (caught.value.hint or "")


def test_no_command(tmp_path: Path) -> None:
    with pytest.raises(InstanceFailed):
        engine(launch("command"), Installations(tmp_path))


def test_flags_of_the_built_in_engine(tmp_path: Path) -> None:
    launched = launch(
        "builtin",
        "--pack",
        "demo",
        "--previews",
        "--pack=pretend",
        "--cors-origin",
        "*",
        "--multi-user",
    )
    words = engine(launched, Installations(tmp_path))
    assert words == ["--engine", "builtin", "--pack", "demo", "--pack", "pretend"]
    variables = builtin_variables(launched, FOLDER)
    assert variables["EASEL_ENGINE__PREVIEWS"] == "true"
    assert variables["EASEL_ENGINE__MULTI_USER"] == "true"
    assert variables["EASEL_ENGINE__CORS_ORIGIN"] == "*"


@pytest.mark.parametrize("words", [["--lowvram"], ["--pack"], ["--previews=1"], ["word"]])
def test_flags_that_the_built_in_engine_lacks(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(InstanceFailed) as caught:
        engine(launch("builtin", *words), Installations(tmp_path))
    assert words[0].partition("=")[0] in caught.value.message


def test_ports_are_free_and_not_those_of_connections() -> None:
    taken = [socket.socket() for _ in range(20)]
    try:
        for one in taken:
            one.bind(("127.0.0.1", 0))
        given = {free_port() for _ in range(50)}
        assert given <= set(PORTS)
        assert len(given) > 40
        for port in given:
            with socket.socket() as one:
                one.bind(("127.0.0.1", port))
    finally:
        for one in taken:
            one.close()
