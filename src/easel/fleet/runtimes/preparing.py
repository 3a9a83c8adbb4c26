"""What a service wants installed before its engine starts: Python packages, and its script's own lines.

Packages go into a virtual environment of the service's own on top of the installation's, named by what is in it: the
installation stays as it is for others, and the second start finds everything there. Blocks: for use in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from easel.errors import InstanceFailed
from easel.fleet.runtimes.command import shell_line
from easel.fleet.runtimes.log_files import last_lines
from easel.services.installations import Installation
from easel.services.model import Mount, ServiceSpec
from easel.services.script import realise

TIMEOUT = 1800.0
"""Seconds one preparation may take."""
POLL = 0.05
LAST_LINES = 20
DONE = "prepared"


class Cancelled(Exception):
    """Nobody waits for the preparation any more; what it ran is ended."""


class Steps:
    """Runs the commands of one preparation, their words into the instance's log; `cancel` ends the one that runs."""

    def __init__(self, env: Mapping[str, str], log: Path, cwd: Path) -> None:
        self._env = dict(env)
        self._log = log
        self._cwd = cwd
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Have the running command ended and no other begun."""
        self._cancelled.set()

    def pause(self) -> None:
        """Wait a moment. Raises Cancelled."""
        if self._cancelled.wait(POLL):
            raise Cancelled

    def run(self, command: Sequence[str], *, shown: str | None = None) -> None:
        """Run a command. Raises InstanceFailed (PreparationFailed) with its last lines, and Cancelled."""
        shown = shown or shlex.join(command)
        if self._cancelled.is_set():
            raise Cancelled
        with self._log.open("ab") as sink:
            sink.write(f"$ {shown}\n".encode(errors="replace"))
            sink.flush()
            begin = sink.tell()
            try:
                process = subprocess.Popen(
                    command,
                    env=self._env,
                    cwd=self._cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    start_new_session=True,
                )
            except OSError as error:
                raise InstanceFailed("PreparationFailed", f"{command[0]}: {error}") from error
        try:
            code = self._wait(process)
        finally:
            # What it left running in the background would hold what the engine needs.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if code != 0:
            how = f"exit code {code}" if code is not None else f"no end within {TIMEOUT:g} s"
            raise InstanceFailed(
                "PreparationFailed",
                f"preparing the instance failed ({how}): {shown[:200]}",
                log=last_lines(self._log, LAST_LINES, begin),
            )

    def _wait(self, process: subprocess.Popen[bytes]) -> int | None:
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(POLL)
            if self._cancelled.is_set():
                raise Cancelled
        return None


def environment(
    spec: ServiceSpec,
    installation: Installation,
    steps: Steps,
    *,
    mounts: Sequence[Mount],
    folder: Path,
) -> Path:
    """Return the interpreter with everything the service wants; the installation's own where it wants nothing.

    ``folder`` is where environments are kept. Raises InstanceFailed (PreparationFailed) with the last lines, and Cancelled.
    """
    file = text = None
    if spec.requirements_path is not None:
        file = Path(realise(spec.requirements_path, mounts, 0, 0))
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is not text"
            raise InstanceFailed(
                "PreparationFailed", f"the requirements file {file} cannot be read: {said}"
            ) from error
    if not spec.requirements and file is None and not spec.engine.prepare:
        return installation.python
    wanted = [realise(line, mounts, 0, 0) for line in spec.requirements]
    lines = [realise(line, mounts, 0, 0) for line in spec.engine.prepare]
    made_of = json.dumps([str(installation.python), wanted, str(file), text, lines])
    own = folder / hashlib.sha256(made_of.encode()).hexdigest()[:16]
    python = own / "bin" / "python"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(own.with_suffix(".lock"), steps):
        if (own / DONE).exists():
            return python
        shutil.rmtree(own, ignore_errors=True)
        steps.run([str(installation.python), "-m", "venv", str(own)])
        _see_through(own, installation.python, steps)
        if wanted:
            # A file: what its URLs hold is not for the list of processes.
            listed = own / "requirements.txt"
            listed.write_text("\n".join(wanted) + "\n")
            steps.run([str(python), "-m", "pip", "install", "-r", str(listed)])
        if file is not None:
            steps.run([str(python), "-m", "pip", "install", "-r", str(file)])
        for line in spec.engine.prepare:
            words = shell_line(line, mounts, python=python)
            steps.run(["/bin/sh", "-c", words], shown=line)
        (own / DONE).touch()
    return python


_SEE = """
import site, sys, pathlib
pathlib.Path(sys.argv[1], "easel-installation").write_text("\\n".join(site.getsitepackages()) + "\\n")
"""
_LINK = """
import site, sys, pathlib
target = pathlib.Path(site.getsitepackages()[0], "easel-installation.pth")
pathlib.Path(sys.argv[1], "easel-installation").rename(target)
"""


def _see_through(own: Path, python: Path, steps: Steps) -> None:
    """Let the new environment see the packages of the installation's, which may be a virtual environment itself."""
    seen = "the packages of the installation"
    steps.run([str(python), "-c", _SEE, str(own)], shown=f"{python}: {seen}")
    steps.run([str(own / "bin" / "python"), "-c", _LINK, str(own)], shown=f"{own}: {seen}")


@contextlib.contextmanager
def _alone(lock: Path, steps: Steps) -> Iterator[None]:
    """Keep other instances of the service from preparing the same environment meanwhile. Raises Cancelled."""
    with lock.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                steps.pause()
        yield
