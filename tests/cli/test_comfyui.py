"""`easel comfyui`: set up from a repository, registered from a folder, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from easel.errors import InstanceFailed
from easel.services.installations import Installations


async def easel(*words: str | Path, home: Path) -> tuple[int, str, str]:
    """Run `easel comfyui` and return code, output and complaints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "easel", "comfyui"),
        *map(str, words),
        *("--home", str(home)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PIP_NO_INDEX": "1"},
    )
    out, err = await asyncio.wait_for(process.communicate(), 50)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def repository(folder: Path, version: str = "0.9.1") -> Path:
    """A git repository that looks like ComfyUI, without requirements."""
    folder.mkdir()
    (folder / "main.py").write_text("print('no')\n")
    (folder / "requirements.txt").write_text("")
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    for words in (
        "init -q",
        "add .",
        "-c user.name=t -c user.email=t@t commit -qm one",
        f"tag v{version}",
    ):
        subprocess.run(["git", "-C", str(folder), *words.split()], check=True)
    return folder


async def test_a_version_is_set_up_from_a_repository(tmp_path: Path) -> None:
    source = await asyncio.to_thread(repository, tmp_path / "source")
    home = tmp_path / "home"
    code, said, complaints = await easel(
        "install", "0.9.1", "--from", f"file://{source}", home=home
    )
    assert code == 0, complaints
    assert "0.9.1: ComfyUI 0.9.1 in" in said
    assert "in use" in said
    code, said, _ = await easel("list", "--json", home=home)
    (one,) = json.loads(said)["installations"]
    assert (one["name"], one["ready"], one["in_use"]) == ("0.9.1", True, True)
    found = await asyncio.to_thread(Installations(home).resolve, None)
    assert (found.folder / "main.py").is_file()
    assert found.python.exists()
    code, _, _ = await easel("remove", "0.9.1", home=home)
    assert code == 0
    assert not found.folder.exists()


async def test_what_cannot_be_fetched_says_what_else_can_be_done(tmp_path: Path) -> None:
    home = tmp_path / "home"
    nowhere = f"file://{tmp_path / 'nowhere'}"
    code, _, complaints = await easel("install", "1.0", "--from", nowhere, home=home)
    assert code == 2
    assert "git clone" in complaints
    assert "easel comfyui install --from FOLDER --python ITS_PYTHON" in complaints
    code, said, _ = await easel("list", home=home)
    assert "incomplete" in said
    with pytest.raises(InstanceFailed, match="not complete"):
        await asyncio.to_thread(Installations(home).resolve, "1.0")
    source = await asyncio.to_thread(repository, tmp_path / "nowhere", "1.0")
    code, said, complaints = await easel("install", "1.0", "--from", f"file://{source}", home=home)
    assert code == 0, complaints


async def test_a_folder_is_registered_and_left_alone(tmp_path: Path) -> None:
    folder = await asyncio.to_thread(repository, tmp_path / "there")
    home = tmp_path / "home"
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    code, said, _ = await easel(
        "install", "--from", folder, "--python", python, "--name", "mine", home=home
    )
    assert code == 0
    assert f"in {folder}" in said
    await easel("remove", "mine", home=home)
    assert (folder / "main.py").is_file()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["install", "--from", "."], "which Python"),
        (["use", "nothing"], "no installation is called 'nothing'"),
        (["remove", "nothing"], "no installation is called 'nothing'"),
        (["install", "1.0", "--name", "../x"], "cannot be the name"),
    ],
)
async def test_mistakes_are_told_in_a_line(
    tmp_path: Path, words: list[Any], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = await asyncio.to_thread(repository, tmp_path / "there")
    monkeypatch.chdir(folder)
    code, _, complaints = await easel(*words, home=tmp_path / "home")
    assert code == 2
    assert complaint in complaints
    assert "Traceback" not in complaints
