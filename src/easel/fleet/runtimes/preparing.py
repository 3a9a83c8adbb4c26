"""What a service wants installed before its engine starts: Python packages, and its script's own lines.

Packages go into a virtual environment of the service's own on top of the installation's, named by what is in it: the
installation stays as it is for others, and the second start finds everything there. Blocks: for use in a thread.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from easel.errors import InstanceFailed
from easel.fleet.runtimes.command import shell_line
from easel.services.installations import Installation
from easel.services.model import Mount, ServiceSpec
from easel.services.script import realise

TIMEOUT = 1800.0
"""Seconds one preparation may take."""
LAST_LINES = 20
DONE = "prepared"


def environment(
    spec: ServiceSpec,
    installation: Installation,
    *,
    mounts: Sequence[Mount],
    folder: Path,
    env: Mapping[str, str],
    log: Path,
) -> Path:
    """Return the interpreter with everything the service wants; the installation's own where it wants nothing.

    ``folder`` is where environments are kept. Raises InstanceFailed (PreparationFailed) with the last lines.
    """
    wanted = list(spec.requirements)
    file = None
    if spec.requirements_path is not None:
        file = Path(realise(spec.requirements_path, mounts, 0, 0))
        try:
            wanted.append(f"# {file}\n{file.read_text()}")
        except OSError as error:
            raise InstanceFailed(
                "PreparationFailed",
                f"the requirements file {file} cannot be read: {error.strerror}",
                hint="prepare.pythonRequirementsPath names a file in the service's storage",
            ) from error
    if not wanted and not spec.engine.prepare:
        return installation.python
    made_of = json.dumps([str(installation.python), wanted, spec.engine.prepare])
    own = folder / hashlib.sha256(made_of.encode()).hexdigest()[:16]
    python = own / "bin" / "python"
    if (own / DONE).exists():
        return python
    shutil.rmtree(own, ignore_errors=True)
    _run([str(installation.python), "-m", "venv", str(own)], env, log)
    _see_through(own, installation.python, env, log)
    if spec.requirements:
        _run([str(python), "-m", "pip", "install", *spec.requirements], env, log)
    if file is not None:
        _run([str(python), "-m", "pip", "install", "-r", str(file)], env, log)
    for line in spec.engine.prepare:
        _run(["/bin/sh", "-c", shell_line(line, mounts, python=python)], env, log)
    (own / DONE).touch()
    return python


def _see_through(own: Path, python: Path, env: Mapping[str, str], log: Path) -> None:
    """Let the new environment see the packages of the installation's, which may be a virtual environment itself."""
    code = "import site; print('\\n'.join(site.getsitepackages()))"
    lines = _run([str(python), "-c", code], env, log)
    code = "import site; print(site.getsitepackages()[0])"
    target = _run([str(own / "bin" / "python"), "-c", code], env, log)[-1]
    (Path(target) / "easel-installation.pth").write_text("\n".join(lines) + "\n")


def _run(command: Sequence[str], env: Mapping[str, str], log: Path) -> list[str]:
    """Run a step, its words into the instance's log. Raises InstanceFailed."""
    try:
        done = subprocess.run(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT,
            check=False,
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstanceFailed("PreparationFailed", f"{command[0]}: {error}") from error
    with log.open("a") as sink:
        sink.write(f"$ {' '.join(command)}\n{done.stdout}")
    lines = done.stdout.splitlines()
    if done.returncode != 0:
        raise InstanceFailed(
            "PreparationFailed",
            f"preparing the instance failed (exit code {done.returncode}): {' '.join(command)[:200]}",
            log=lines[-LAST_LINES:],
        )
    return lines
