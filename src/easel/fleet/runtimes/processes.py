"""The processes of instances: found again by id and start time, ended by force, their ends remembered, their memory counted.

Everything here blocks: for use in a thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import psutil

POLL = 0.01
"""Seconds between two looks whether a process has ended."""
MOST_CODES = 1000
"""Exit codes that are kept."""
KNOWN_TIMEOUT = 1.0
VMSTAT = Path("/proc/vmstat")
LARGE = 2 * 1024**3
"""Bytes from which on a process is not measured page by page, which would hold it up (10 ms for each GiB)."""


def started_at(pid: int) -> float:
    """Return when a process was started, in seconds since the boot where the system says so. Raises psutil.Error.

    Unlike a time of day it is the same in every process and after the clock was set.
    """
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError as error:
            raise psutil.NoSuchProcess(pid) from error
        ticks: int = os.sysconf("SC_CLK_TCK")
        return int(stat.rpartition(b")")[2].split()[19]) / ticks
    return psutil.Process(pid).create_time()


class Processes:
    """Starts processes, finds them again, and remembers how those ended that were its own children."""

    def __init__(self) -> None:
        self._codes: OrderedDict[tuple[int, float], int] = OrderedDict()
        self._lock = threading.Lock()

    def spawn(
        self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path
    ) -> tuple[int, float]:
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
                cwd=cwd,
                start_new_session=True,
            )
        process.returncode = 0  # `_reap` waits for it, the object must not
        _wait_until_known(process.pid)
        return process.pid, started_at(process.pid)

    def find(self, pid: int, started: float) -> psutil.Process | None:
        """Return the process if it still runs: the id alone may be another's by now."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if started_at(pid) == started:
                if process.status() == psutil.STATUS_ZOMBIE and self._reap(pid, started):
                    return None
                return process
        return None

    def exit_code(self, pid: int, started: float) -> int | None:
        """Return how an ended process ended: its code, or minus a signal's number; None for one that is not our child."""
        return self._codes.get((pid, started))

    def _reap(self, pid: int, started: float) -> bool:
        """Take note of a child's end; False while its threads are still ending, and how it ends cannot be asked yet."""
        with self._lock, contextlib.suppress(ChildProcessError):
            found, status = os.waitpid(pid, os.WNOHANG)
            if not found:
                return False
            self._codes[pid, started] = os.waitstatus_to_exitcode(status)
            if len(self._codes) > MOST_CODES:
                self._codes.popitem(last=False)
        return True

    def ask(self, pid: int, started: float, grace: float) -> None:
        """Ask a process to end (SIGTERM) and wait for that, at most ``grace`` seconds."""
        if self.find(pid, started) is not None:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + grace
        while self.find(pid, started) is not None and time.monotonic() < end:
            time.sleep(POLL)

    def kill(self, processes: Iterable[psutil.Process], timeout: float) -> list[psutil.Process]:
        """End processes by force and wait for that; returns those that are left after ``timeout`` seconds."""
        left = {}
        for one in processes:
            with contextlib.suppress(psutil.Error):
                left[one.pid] = started_at(one.pid), one
                one.kill()
        end = time.monotonic() + timeout
        while left:
            left = {pid: one for pid, one in left.items() if self.find(pid, one[0]) is not None}
            if not left or time.monotonic() >= end:
                break
            time.sleep(POLL)
        return [one for _, one in left.values()]


def _wait_until_known(pid: int) -> None:
    """Wait until a process that was just started shows its environment (Linux), by which it is found.

    Popen returns in the middle of exec: for a moment it has none, and a stop that comes at once would not see it.
    """
    if sys.platform != "linux":
        return
    end = time.monotonic() + KNOWN_TIMEOUT
    with contextlib.suppress(OSError, psutil.Error):
        while not Path(f"/proc/{pid}/environ").read_bytes() and time.monotonic() < end:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
            time.sleep(0.001)


def tree(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and all it started, as far as they are its descendants now."""
    with contextlib.suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return [process]


def memory(pids: Collection[int]) -> dict[int, int]:
    """Return, for each process, the bytes it and its descendants hold and nobody could take away.

    What is only mapped from files is not among them (models are, and the system drops it when it needs the room); what
    several processes share counts in parts. One look at the machine serves all of them.
    """
    below: dict[int, list[psutil.Process]] = {}
    own: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            below.setdefault(process.ppid(), []).append(process)
            own[process.pid] = process
    found = {}
    for pid in pids:
        waiting, seen, total = [own[pid]] if pid in own else [], {pid}, 0
        while waiting:
            one = waiting.pop()
            total += _held(one)
            for child in below.get(one.pid, ()):
                if child.pid not in seen:
                    seen.add(child.pid)
                    waiting.append(child)
        found[pid] = total
    return found


def out_of_memory_kills() -> int | None:
    """Return how many processes the system has ended for want of memory since it started; None where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in VMSTAT.read_bytes().splitlines():
            if line.startswith(b"oom_kill "):
                return int(line.split()[1])
    return None


def _held(process: psutil.Process) -> int:
    if sys.platform != "linux":
        with contextlib.suppress(psutil.Error):
            return int(process.memory_info().rss)
        return 0
    proc = f"/proc/{process.pid}"
    resident = _bytes(f"{proc}/status", (b"RssAnon", b"RssShmem", b"VmSwap"))
    if resident > LARGE:
        return resident
    return _bytes(f"{proc}/smaps_rollup", (b"Pss_Anon", b"Pss_Shmem", b"SwapPss")) or resident


def _bytes(path: str, names: tuple[bytes, ...]) -> int:
    """Return the sum of fields of a file of /proc, which counts in kB."""
    total = 0
    with contextlib.suppress(OSError, ValueError):
        for line in Path(path).read_bytes().splitlines():
            name, _, value = line.partition(b":")
            if name in names:
                total += int(value.split()[0]) * 1024
    return total
