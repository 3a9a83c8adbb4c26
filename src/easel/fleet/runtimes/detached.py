"""Processes that outlive the one that started them: found again by id and start time, stopped with all they started.

Everything here blocks: for use in a thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

SAME_START = 0.05
"""Seconds by which two readings of one process's start may differ."""
FORCE_TIMEOUT = 5.0


def spawn(command: Sequence[str], *, env: Mapping[str, str], log: Path) -> tuple[int, float]:
    """Start a process in a session of its own and return its id and start time. Raises OSError.

    It inherits nothing that ties it to us: no terminal, no pipe.
    """
    with log.open("ab") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=dict(env),
            start_new_session=True,
        )
    # Our own children must be waited for when they end; `reap` does.
    process.returncode = 0
    return process.pid, psutil.Process(process.pid).create_time()


def find(pid: int, started: float) -> psutil.Process | None:
    """Return the process if it still runs: the id alone may be another's by now."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if abs(process.create_time() - started) < SAME_START:
            if process.status() == psutil.STATUS_ZOMBIE:
                reap(pid)
                return None
            return process
    return None


def reap(pid: int) -> int | None:
    """Take note of a child's end and return its exit code; None for one that is not ours or runs."""
    with contextlib.suppress(ChildProcessError):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
    return None


def stop(process: psutil.Process, grace: float) -> None:
    """Ask a process to end, and after ``grace`` seconds end it and all it started by force."""
    tree = _tree(process)
    with contextlib.suppress(psutil.Error):
        process.send_signal(signal.SIGTERM)
    _wait([process], grace)
    # What it started in between, and what survived it.
    everything = {one.pid: one for one in [*tree, *_tree(process), *_session(process.pid)]}
    for one in everything.values():
        with contextlib.suppress(psutil.Error):
            one.kill()
    _wait(list(everything.values()), FORCE_TIMEOUT)


def _wait(processes: list[psutil.Process], timeout: float) -> None:
    psutil.wait_procs(processes, timeout=timeout)
    for one in processes:
        reap(one.pid)


def _tree(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return [process]


def _session(leader: int) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == leader:
                yield process


def memory(process: psutil.Process) -> int:
    """Return the bytes a process and all it started hold for themselves, in pages that nobody shares."""
    total = 0
    for one in _tree(process):
        with contextlib.suppress(psutil.Error):
            total += one.memory_full_info().uss
    return total
