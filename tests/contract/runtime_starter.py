"""A platform's process that starts one instance and is killed: ``python -m tests.contract.runtime_starter HOME [die]``.

Reads a launch from standard input and prints each handle as a line, which stands for storing it. With ``die`` it is gone
right after it started a process, before the handle of that.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

from easel.fleet.runtime import Launch
from easel.fleet.runtimes.local import LocalRuntime
from easel.fleet.runtimes.processes import Processes
from easel.settings import FleetSettings


class DiesUnnoticed(Processes):
    """Its process is killed when it has just started another."""

    def spawn(self, *arguments: Any, **named: Any) -> tuple[int, float]:
        super().spawn(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main() -> None:
    launch = msgspec.json.decode(sys.stdin.buffer.readline(), type=Launch)
    runtime = LocalRuntime(Path(sys.argv[1]), FleetSettings())
    if sys.argv[2:] == ["die"]:
        runtime._processes = DiesUnnoticed()
    async for handle in runtime.start(launch):
        say(json.dumps(handle))
    say("started")
    threading.Event().wait()  # to be killed


asyncio.run(main())
