"""Stands between Easel and an engine, so that nothing of the engine outlives either of them.

Run as a program of its own (``python -I -S launcher.py <fd> <command> …``), on the standard library alone. Its standard input
is a pipe whose other end only Easel holds: when that closes, because Easel wants the engine gone or because Easel itself is
gone, however it died, everything below is killed. (A parent-death signal would be sent already when the *thread* that
started us ends, and could not be asked for safely between fork and exec of a process with threads; this process has one
thread, so it may use both for the engine.) On Linux it adopts orphans of the engine, to kill them too. SIGTERM and SIGINT
are passed on to the engine's process group. It ends as the engine ended: same code, same signal.

The engine's process id is written to ``<fd>``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
import time
from types import FrameType

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SWEEP_SECONDS = 3.0
LIFELINE = 0
INHERITED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE)
"""Signals the engine gets back: ours, those Python ignores, and SIGINT, which a shell's ``&`` has ignored."""


def prctl(option: int, value: int) -> None:
    """Call prctl(2) where there is one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def launch(command: list[str]) -> int:
    """Start the engine in a process group of its own and return its id."""
    launcher = os.getpid()
    engine = os.fork()
    if engine:
        return engine
    try:
        os.setpgid(0, 0)
        for number in INHERITED:
            signal.signal(number, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == launcher:
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.execvp(command[0], command)  # noqa: S606 - the operator's own command
    except OSError as error:
        os.write(2, f"{command[0]} cannot be started: {error}\n".encode())
    os._exit(127)


def children() -> list[int]:
    """Return the processes whose parent we are, adopted ones included (Linux)."""
    mine = os.getpid()
    found = []
    for entry in os.listdir("/proc") if sys.platform == "linux" else ():  # noqa: PTH208 - cheaper
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                with open(f"/proc/{entry}/stat", "rb") as stat:  # noqa: PTH123 - no pathlib here
                    parent = int(stat.read().rpartition(b")")[2].split()[1])
                if parent == mine:
                    found.append(int(entry))
    return found


def reap(engine: int, status: int | None) -> int | None:
    """Take note of processes that have ended; return the engine's wait status once known."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, ended = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == engine:
                status = ended
    return status


def sweep(engine: int, status: int | None) -> int | None:
    """Kill the engine's group and everything that was orphaned to us, until nothing is left."""
    end = time.monotonic() + SWEEP_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            os.killpg(engine, signal.SIGKILL)
        rest = children()
        for pid in rest:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        status = reap(engine, status)
        if not rest and status is not None:
            break
        time.sleep(0.005)
    return status


def end_like(status: int) -> None:
    """End this process as the engine ended."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        os._exit(128 + number)
    os._exit(os.waitstatus_to_exitcode(status))


def main() -> None:
    """Run the engine until it ends or the lifeline is cut."""
    announce, command = int(sys.argv[1]), sys.argv[2:]
    os.set_inheritable(announce, False)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    engine: int | None = None

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if engine is not None:
            with contextlib.suppress(OSError):
                os.killpg(engine, number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    engine = launch(command)
    with contextlib.suppress(OSError):
        os.setpgid(engine, engine)  # whichever of the two comes first
    os.write(announce, b"%d\n" % engine)
    os.close(announce)
    status: int | None = None
    while status is None:
        readable = select.select([LIFELINE, woken], [], [])[0]
        if woken in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
            status = reap(engine, status)
        elif not os.read(LIFELINE, 4096):
            break
    status = sweep(engine, status)
    end_like(status if status is not None else signal.SIGKILL)


if __name__ == "__main__":
    main()
