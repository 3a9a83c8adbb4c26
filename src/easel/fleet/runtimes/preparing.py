"""What a service wants installed before its engine starts: Python packages, and its script's own lines.

Packages go into a virtual environment of the service's own on top of the installation's, named by what is in it: the
installation stays as it is for others, and the second start finds everything there. Blocks: for use in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from easel.errors import InstanceFailed
from easel.fleet.runtimes.log_files import last_lines
from easel.services.installations import Installation
from easel.services.model import Mount, ServiceSpec
from easel.services.script import real_paths

TIMEOUT = 1800.0
"""Seconds one preparation may take."""
POLL = 0.05
LAST_LINES = 20
DONE = "prepared"
_PIP = re.compile(r"\bpip3?\b")
_INSTALLS = re.compile(r"(?:\S*/)?(?:python[\d.]*\s+-m\s+)?pip3?\s+install\b[^|<>$`]*$")
"""A line that installs packages and does nothing else."""
_SHELLS = frozenset({"PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"})
"""Set by the shell, or by the Python that tells, rather than by a line."""


class Cancelled(Exception):
    """Nobody waits for the preparation any more; what it ran is ended."""


class Steps:
    """Runs the commands of one preparation, their words into the instance's log; `cancel` ends the one that runs."""

    def __init__(self, env: Mapping[str, str], log: Path, cwd: Path) -> None:
        self.env = dict(env)
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
                    env=self.env,
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


class Prepared(NamedTuple):
    """What the preparation came to."""

    python: Path
    """The interpreter with everything the service wants; the installation's own where it wants nothing."""
    variables: dict[str, str]
    """What the script's lines exported, for the engine."""


def prepare(
    spec: ServiceSpec,
    installation: Installation,
    steps: Steps,
    *,
    mounts: Sequence[Mount],
    folder: Path,
) -> Prepared:
    """Install what the service wants, once; run the lines before its engine, at every start.

    Lines that install packages and come first count as packages. ``folder`` is where environments are kept. Raises
    InstanceFailed (PreparationFailed) with the last lines, and Cancelled.
    """
    file = text = None
    if spec.requirements_path is not None:
        file = Path(real_paths(spec.requirements_path, mounts))
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is not text"
            raise InstanceFailed(
                "PreparationFailed", f"the requirements file {file} cannot be read: {said}"
            ) from error
    wanted = [real_paths(line, mounts) for line in spec.requirements]
    lines = [real_paths(line, mounts) for line in spec.engine.prepare]
    installing = list(itertools.takewhile(_INSTALLS.match, lines))
    others = lines[len(installing) :]
    python = installation.python
    if wanted or file is not None or any(_PIP.search(line) for line in lines):
        made_of = [str(python), wanted, str(file), text, installing, _files_in(installing)]
        if any(_PIP.search(line) for line in others):
            made_of += others  # they install into it at every start: no other service may share it
        digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = folder / digest
        with _alone(own.with_suffix(".lock"), steps):
            if not (own / DONE).exists():
                _make(own, installation, steps, wanted=wanted, file=file, lines=installing)
            python = own / "bin" / "python"
            return Prepared(python, _script(others, python, steps))
    return Prepared(python, _script(others, python, steps))


def _make(
    own: Path,
    installation: Installation,
    steps: Steps,
    *,
    wanted: Sequence[str],
    file: Path | None,
    lines: Sequence[str],
) -> None:
    """Make an environment on top of the installation's and install into it."""
    shutil.rmtree(own, ignore_errors=True)
    steps.run([str(installation.python), "-m", "venv", "--without-pip", str(own)])
    _see_through(own, installation.python, steps)
    python = own / "bin" / "python"
    _give_pip(python, steps)
    if wanted:
        # A file: what its URLs hold is not for the list of processes.
        listed = own / "requirements.txt"
        listed.write_text("\n".join(wanted) + "\n")
        steps.run([str(python), "-m", "pip", "install", "-r", str(listed)])
    if file is not None:
        steps.run([str(python), "-m", "pip", "install", "-r", str(file)])
    for line in lines:
        steps.run(["/bin/sh", "-c", f"{_path(python)}\n{line}"], shown=line)
    (own / DONE).touch()


def _script(lines: Sequence[str], python: Path, steps: Steps) -> dict[str, str]:
    """Run lines as one script, which ends at the first that fails; return the variables that it exported."""
    if not lines:
        return {}
    with tempfile.NamedTemporaryFile() as told:
        last = f"{shlex.quote(str(python))} -c {shlex.quote(_TELL)} {shlex.quote(told.name)}"
        script = "\n".join(["set -e", _path(python), *lines, last])
        steps.run(["/bin/sh", "-c", script], shown="; ".join(lines))
        pairs = (os.fsdecode(part).partition("=") for part in told.read().split(b"\0") if part)
        found = {name: value for name, _, value in pairs}
    if "PATH" in found:
        found["PATH"] = found["PATH"].replace(f"{python.parent}:", "", 1)
    return {
        name: value
        for name, value in found.items()
        if steps.env.get(name) != value and name not in _SHELLS and not name.startswith("EASEL_")
    }


def _path(python: Path) -> str:
    """Return the line with which ``python`` and ``pip`` mean this interpreter's."""
    return f"export PATH={shlex.quote(str(python.parent))}:$PATH"


def _files_in(lines: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return the files that lines name, with size and time: a wheel that was replaced is another one."""
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            for word in shlex.split(line):
                with contextlib.suppress(OSError, ValueError):
                    state = os.stat(word)  # noqa: PTH116 - words are no paths yet
                    if stat.S_ISREG(state.st_mode):
                        found.append((word, state.st_size, state.st_mtime_ns))
    return found


_SEE = """
import site, sys, pathlib
lines = [f"import site; site.addsitedir({folder!r})" for folder in site.getsitepackages()]
pathlib.Path(sys.argv[1], "easel-installation").write_text("\\n".join(lines) + "\\n")
"""
_LINK = """
import site, sys, pathlib
target = pathlib.Path(site.getsitepackages()[0], "easel-installation.pth")
pathlib.Path(sys.argv[1], "easel-installation").rename(target)
"""
_TELL = """
import os, sys
with open(sys.argv[1], "wb") as told:
    told.write(b"\\0".join(name + b"=" + value for name, value in os.environb.items()))
"""


def _see_through(own: Path, python: Path, steps: Steps) -> None:
    """Let the new environment see the packages of the installation's, which may be a virtual environment itself."""
    seen = "the packages of the installation"
    steps.run([str(python), "-c", _SEE, str(own)], shown=f"{python}: {seen}")
    steps.run([str(own / "bin" / "python"), "-c", _LINK, str(own)], shown=f"{own}: {seen}")


def _give_pip(python: Path, steps: Steps) -> None:
    """Let ``pip`` install into the environment: the installation's own pip where it has one, which is there at once."""
    words = '"$0" -c "import pip" 2>/dev/null || "$0" -m ensurepip'
    steps.run(["/bin/sh", "-c", words, str(python)], shown=f"{python}: pip")
    for name in ("pip", "pip3"):
        command = python.with_name(name)
        command.unlink(missing_ok=True)
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(str(python))} -m pip "$@"\n')
        command.chmod(0o755)


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
