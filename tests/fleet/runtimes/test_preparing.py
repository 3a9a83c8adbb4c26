"""What a service wants installed, with real virtual environments and wheels made here: no network."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from easel.errors import InstanceFailed
from easel.fleet.advice import advise
from easel.fleet.runtimes.preparing import Cancelled, Prepared, Steps, prepare
from easel.services.installations import Installation
from easel.services.model import EngineSpec, Mount, ServiceSpec
from tests.waiting import until


def wheel(folder: Path, name: str, value: int = 1) -> Path:
    """Make a wheel of one module that holds a value."""
    files = {
        f"{name}.py": f"VALUE = {value}\n",
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{name}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={_digest(text)},{len(text)}\n" for path, text in files.items())
    files[f"{name}-1.0.dist-info/RECORD"] = record
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in files.items():
            archive.writestr(inside, text)
    return path


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class Bench:
    """A platform's folder and a service's storage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir()
        self.log = folder / "log"
        self.log.touch()
        self.mounts = [Mount(mount_path="/mnt/data", source=str(self.data))]
        self.installation = Installation(
            name="main", folder=folder, python=Path(sys.executable), version="1"
        )

    def steps(self) -> Steps:
        env = {"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        return Steps(env, self.log, self.folder)

    def prepare(self, steps: Steps | None = None, *lines: str, **fields: Any) -> Path:
        return self.prepared(steps, *lines, **fields).python

    def prepared(self, steps: Steps | None = None, *lines: str, **fields: Any) -> Prepared:
        engine = EngineSpec(kind="comfyui", prepare=list(lines))
        spec = ServiceSpec(name="draw", edition="standard", engine=engine, **fields)
        return prepare(
            spec,
            self.installation,
            steps or self.steps(),
            mounts=self.mounts,
            folder=self.folder / "environments",
        )

    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def shown(python: Path, code: str) -> str:
    return subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_nothing_wanted(bench: Bench) -> None:
    assert bench.prepare() == Path(sys.executable)
    assert not (bench.folder / "environments").exists()


def test_packages_on_top_of_the_installations(bench: Bench) -> None:
    wheel(bench.data, "first")
    wheel(bench.data, "second", 2)
    (bench.data / "needs.txt").write_text(f"{bench.data}/second-1.0-py3-none-any.whl\n")
    python = (
        bench.prepare(
            None,
            "pip install /mnt/data/third-1.0-py3-none-any.whl  # one more",
            'echo "made $(python -c "import first; print(first.VALUE)")" > /mnt/data/made',
            requirements=["/mnt/data/first-1.0-py3-none-any.whl"],
            requirements_path="/mnt/data/needs.txt",
        )
        if wheel(bench.data, "third", 3)
        else None
    )
    assert python is not None
    assert python != Path(sys.executable)
    code = "import first, second, third, psutil; print(first.VALUE, second.VALUE, third.VALUE)"
    assert shown(python, code) == "1 2 3", "and psutil is the installation's"
    assert (bench.data / "made").read_text() == "made 1\n"
    with pytest.raises(subprocess.CalledProcessError):
        shown(Path(sys.executable), "import first")
    assert (bench.folder / "environments").stat().st_mode & 0o777 == 0o700


def test_the_second_start_finds_it_there_and_runs_the_scripts_lines_again(bench: Bench) -> None:
    wheel(bench.data, "first")
    lines = ["pip install /mnt/data/first-1.0-py3-none-any.whl", "echo again >> /mnt/data/count"]
    python = bench.prepare(None, *lines)
    before = bench.said()
    assert bench.prepare(None, *lines) == python
    assert bench.said().removeprefix(before).count("$ ") == 1
    assert "pip" not in bench.said().removeprefix(before)
    assert (bench.data / "count").read_text() == "again\nagain\n"
    wheel(bench.data, "second")
    wanted = ["/mnt/data/second-1.0-py3-none-any.whl"]
    assert bench.prepare(None, *lines, requirements=wanted) != python


def test_a_wheel_that_was_replaced_is_another_one(bench: Bench) -> None:
    line = "pip install /mnt/data/first-1.0-py3-none-any.whl"
    wheel(bench.data, "first")
    assert shown(bench.prepare(None, line), "import first; print(first.VALUE)") == "1"
    wheel(bench.data, "first", 22)
    assert shown(bench.prepare(None, line), "import first; print(first.VALUE)") == "22"


def test_lines_without_packages_need_no_environment(bench: Bench) -> None:
    assert bench.prepare(None, "mkdir -p /mnt/data/made") == Path(sys.executable)
    assert (bench.data / "made").is_dir()
    assert not (bench.folder / "environments").exists()


def test_lines_are_one_script(bench: Bench) -> None:
    lines = [
        "cd /mnt/data",
        "export HERE=$PWD HF_HOME=/mnt/data/hf",
        "UNSEEN=1",
        "for one in a b",
        "do echo $one >> list",
        "done",
        "export PATH=/mnt/data/bin:$PATH",
        "export EASEL_AGENT__JOIN=elsewhere",
    ]
    found = bench.prepared(None, *lines).variables
    assert found["HERE"] == str(bench.data)
    assert found["HF_HOME"] == f"{bench.data}/hf"
    assert found["PATH"] == f"{bench.data}/bin:/usr/bin:/bin"
    assert not bench.prepared(None, "port=8", "echo ${port} > /mnt/data/port").variables
    assert (bench.data / "port").read_text() == "8\n"
    assert set(found) == {"HERE", "HF_HOME", "PATH"}
    assert (bench.data / "list").read_text() == "a\nb\n"


def test_a_package_that_a_later_line_installs_is_not_the_installations(bench: Bench) -> None:
    wheel(bench.data, "late")
    lines = ["cd /mnt/data", "pip install late-1.0-py3-none-any.whl"]
    python = bench.prepare(None, *lines)
    assert shown(python, "import late; print(late.VALUE)") == "1"
    assert python != Path(sys.executable)
    assert bench.prepare(None, *lines) == python


def test_what_was_broken_off_is_made_anew(bench: Bench) -> None:
    line = "pip install /mnt/data/first-1.0-py3-none-any.whl"
    with pytest.raises(InstanceFailed):
        bench.prepare(None, line)
    wheel(bench.data, "first")
    assert shown(bench.prepare(None, line), "import first; print(first.VALUE)") == "1"


def test_a_package_that_is_not_there(bench: Bench) -> None:
    with pytest.raises(InstanceFailed) as caught:
        bench.prepare(requirements=["no-such-package==9"])
    failed = caught.value
    assert failed.reason == "PreparationFailed"
    assert any("no-such-package==9" in line for line in failed.log or [])
    assert "venv" not in "\n".join(failed.log or []), "its own words, not those of steps before"
    advice = advise(failed.reason, failed.message, failed.log or [])
    assert advice is not None
    assert "no-such-package" in advice
    assert "models/whl" in advice


def test_a_wheel_for_another_machine(bench: Bench) -> None:
    built = wheel(bench.data, "first").rename(bench.data / "first-1.0-cp27-cp27m-win32.whl")
    with pytest.raises(InstanceFailed) as caught:
        bench.prepare(requirements=[str(built)])
    advice = advise(caught.value.reason, caught.value.message, caught.value.log or [])
    assert advice is not None
    assert "first-1.0-cp27-cp27m-win32.whl" in advice


def test_a_line_that_fails(bench: Bench) -> None:
    with pytest.raises(InstanceFailed) as caught:
        bench.prepare(None, "no-such-program --now")
    assert "exit code 127" in caught.value.message
    assert "no-such-program --now" in caught.value.message
    advice = advise(caught.value.reason, caught.value.message, caught.value.log or [])
    assert advice is not None
    assert "no-such-program" in advice


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_requirements_file_that_cannot_be_read(bench: Bench, content: bytes | None) -> None:
    if content is not None:
        (bench.data / "needs.txt").write_bytes(content)
    with pytest.raises(InstanceFailed) as caught:
        bench.prepare(requirements_path="/mnt/data/needs.txt")
    assert str(bench.data / "needs.txt") in caught.value.message


def test_what_a_line_leaves_running_ends_with_it(bench: Bench) -> None:
    bench.prepare(None, "sleep 600 & echo $! > /mnt/data/pid")
    left = int((bench.data / "pid").read_text())
    if psutil.pid_exists(left):
        gone, _ = psutil.wait_procs([psutil.Process(left)], timeout=10)
        assert gone


async def test_cancelled(bench: Bench) -> None:
    steps = bench.steps()
    line = "echo $$ > /mnt/data/pid; sleep 600"
    preparing = asyncio.create_task(asyncio.to_thread(bench.prepare, steps, line))

    async def running() -> str:
        path = bench.data / "pid"
        return await asyncio.to_thread(lambda: path.read_text() if path.exists() else "")

    pid = int(await until(running, timeout=40))
    steps.cancel()
    with pytest.raises(Cancelled):
        await asyncio.wait_for(preparing, 10)
    assert not psutil.pid_exists(pid)
    with pytest.raises(Cancelled):
        steps.run(["true"])


async def test_two_instances_of_a_service_prepare_once(bench: Bench) -> None:
    wheel(bench.data, "first")
    lines = ["pip install /mnt/data/first-1.0-py3-none-any.whl", "echo each >> /mnt/data/count"]
    together = threading.Barrier(2, timeout=20)

    def prepare() -> Path:
        together.wait()
        return bench.prepare(None, *lines)

    first, second = await asyncio.gather(*(asyncio.to_thread(prepare) for _ in range(2)))
    assert first == second
    assert bench.said().count("-m venv") == 1
    assert (bench.data / "count").read_text() == "each\neach\n"


def test_what_is_secret_in_a_requirement_is_not_in_the_list_of_processes(bench: Bench) -> None:
    """A token in an index URL stands in a file of the platform's, and in no command line."""
    with pytest.raises(InstanceFailed) as caught:
        bench.prepare(requirements=["--extra-index-url", "https://me:hush@127.0.0.1:9/simple"])
    assert "hush" not in caught.value.message
    assert not any(line.startswith("$") and "hush" in line for line in bench.said().splitlines())
