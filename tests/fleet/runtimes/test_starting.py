"""What reaches an instance of its service's and the platform's words, and where its folders are."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from easel.errors import InstanceFailed
from easel.fleet.runtime import Launch
from easel.fleet.runtimes import starting
from easel.fleet.runtimes.starting import Starting, empty_prefix
from easel.services.installations import Installations
from easel.services.model import EngineSpec, Mount, ServiceSpec
from easel.settings import FleetSettings


def start(
    home: Path,
    *prepare: str,
    device: str | None = None,
    kind: str = "command",
    instance: str = "draw-1",
    **fields: Any,
) -> Starting:
    command = [sys.executable, "--port", "{port}"] if kind == "command" else []
    engine = EngineSpec(kind=kind, command=command, prepare=list(prepare))  # type: ignore[arg-type]
    spec = ServiceSpec(**{"name": "draw", "edition": "api", "engine": engine, **fields})
    launch = Launch(
        instance=instance,
        service="draw",
        spec=spec,
        device=device,
        gateway_url="http://127.0.0.1:9",
        token="hush",
    )
    folder = home / "instances" / instance
    return Starting(launch, home, FleetSettings(), Installations(home), folder)


def env(one: Starting) -> dict[str, str]:
    one.prepare()
    return one.env


def test_the_services_words_reach_its_engine(tmp_path: Path) -> None:
    found = env(start(tmp_path, env={"HF_ENDPOINT": "http://mirror", "PATH": "/opt/bin"}))
    assert found["HF_ENDPOINT"] == "http://mirror"
    assert found["PATH"] == "/opt/bin"


def test_the_platforms_words_win(tmp_path: Path) -> None:
    said = {
        "EASEL_CONFIG": "/srv/mine.toml",
        "EASEL_AGENT__JOIN": "http://elsewhere",
        "EASEL_AGENT__ORPHAN_TIMEOUT": "99999",
        "EASEL_INSTANCE": "other-1",
        "EASEL_INSTANCE_HOME": "/elsewhere",
        "CUDA_VISIBLE_DEVICES": "0",
        "USE_AGENT": "0",
    }
    script = "; ".join(f"export {name}={value}" for name, value in said.items())
    for one in (
        start(tmp_path, device="GPU-7", env=said),
        start(tmp_path, script, device="GPU-7"),
    ):
        found = env(one)
        assert found["CUDA_VISIBLE_DEVICES"] == found["EASEL_AGENT__DEVICE"] == "GPU-7"
        assert found["EASEL_INSTANCE"] == "draw-1"
        assert found["EASEL_INSTANCE_HOME"] == str(tmp_path)
        assert found["EASEL_AGENT__ORPHAN_TIMEOUT"] in {"600", "600.0"}
        assert "EASEL_AGENT__JOIN" not in found
        assert "USE_AGENT" not in found
        config = Path(found["EASEL_CONFIG"])
        assert config.parent == one.folder
        assert config.read_text() == ""


@pytest.mark.parametrize("said", [{"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {"A": "x\0"}])
def test_what_no_environment_can_hold(tmp_path: Path, said: dict[str, str]) -> None:
    found = env(start(tmp_path, env={**said, "GOOD": "y"}))
    assert found["GOOD"] == "y"
    assert not any(name in found for name in said)


def test_the_platforms_own_settings_stay_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EASEL_DATABASE", "EASEL_GATEWAY__PORT", "EASEL_CONFIG", "PGPASSWORD"):
        monkeypatch.setenv(name, "hush")
    monkeypatch.setenv("EASEL_AGENT__DEVICE", "3")
    monkeypatch.setenv("EASEL_AGENT__INPUTS__MAX_BYTES", "1000")
    found = env(start(tmp_path))
    assert "hush" not in found.values()
    assert "EASEL_AGENT__DEVICE" not in found
    assert found["EASEL_AGENT__INPUTS__MAX_BYTES"] == "1000", "an operator's word for all agents"


def test_a_token_file_that_was_somebody_elses(tmp_path: Path) -> None:
    """A start replaces it: it neither writes through a link nor keeps another's mode."""
    one = start(tmp_path)
    one.folder.mkdir(parents=True)
    bait = tmp_path / "bait"
    bait.write_text("as it was")
    (one.folder / "token").symlink_to(bait)
    one.prepare()
    assert bait.read_text() == "as it was"
    assert (one.folder / "token").stat().st_mode & 0o777 == 0o600
    assert one.folder.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where everybody may make one."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(starting, "SHARED_MEMORY", folder)
    return folder


IN_MEMORY = [Mount(mount_path="/quick", source=None, memory=True)]


def test_an_empty_folder_in_memory_is_ours_alone(tmp_path: Path, shared: Path) -> None:
    one = start(tmp_path, mounts=IN_MEMORY)
    one.prepare()
    (made,) = shared.iterdir()
    assert made.name.startswith(empty_prefix(one.folder))
    assert made.stat().st_mode & 0o777 == 0o700
    one.prepare()  # it lives as long as the instance, over restarts
    assert list(shared.iterdir()) == [made]
    elsewhere = start(tmp_path / "other", mounts=IN_MEMORY)
    elsewhere.prepare()
    assert len(list(shared.iterdir())) == 2, "another platform's instance of the same name"


def test_a_link_that_somebody_laid_there(tmp_path: Path, shared: Path) -> None:
    one = start(tmp_path, mounts=IN_MEMORY)
    bait = tmp_path / "bait"
    bait.mkdir()
    (shared / f"{empty_prefix(one.folder)}0").symlink_to(bait)
    with pytest.raises(InstanceFailed) as caught:
        one.prepare()
    assert "somebody else" in caught.value.message


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give folders away")
def test_a_folder_that_is_somebody_elses(tmp_path: Path, shared: Path) -> None:
    one = start(tmp_path, mounts=IN_MEMORY)
    laid = shared / f"{empty_prefix(one.folder)}0"
    laid.mkdir()
    os.chown(laid, 65534, 65534)
    with pytest.raises(InstanceFailed):
        one.prepare()
