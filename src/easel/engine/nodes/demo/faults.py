"""Demo nodes that go wrong."""

from __future__ import annotations

import collections
import itertools
import os
import signal
import threading
from typing import Any, NoReturn

import numpy as np

from easel.engine.node import Input, NodeContext, Output, Registry
from easel.engine.nodes.declare import choice, flag, integer, real
from easel.engine.nodes.demo.common import CATEGORY, MODULE, PASSED, SALT, swatch
from easel.engine.nodes.pixels import Pixels

registry = Registry()

_ERRORS: dict[str, type[Exception]] = {
    "RuntimeError": RuntimeError,
    "ValueError": ValueError,
    "KeyError": KeyError,
    "FileNotFoundError": FileNotFoundError,
    "MemoryError": MemoryError,
}


@registry.node(
    "EaselFail",
    display_name="Fail",
    category=CATEGORY,
    python_module=MODULE,
    description="Raises an exception, after some steps.",
    required={
        "message": Input("STRING", {"default": "failed on purpose", "multiline": True}),
        "exception": choice(*_ERRORS),
        "steps": integer(0, 0, 100_000),
        "salt": SALT,
    },
    optional=PASSED,
    outputs=(Output("IMAGE"),),
    output_node=True,
)
def fail(
    context: NodeContext, *, message: str, exception: str, steps: int, salt: int, image: Any = None
) -> NoReturn:
    """Raise after ``steps`` reported steps, the last of which is not reached."""
    for step in range(1, steps + 1):
        context.progress(step, steps + 1)
    raise _ERRORS[exception](message)


_SIGNALS = ("SIGKILL", "SIGSEGV", "SIGABRT", "SIGTERM")


@registry.node(
    "EaselCrash",
    display_name="Crash",
    category=CATEGORY,
    python_module=MODULE,
    description="Ends the engine's process: by an exit code or by a signal.",
    required={
        "how": choice("exit", *_SIGNALS),
        "exit_code": integer(1, 0, 255),
        "seconds": real(0.0, 0.0, 3600.0, 0.01),
        "salt": SALT,
    },
    optional=PASSED,
    outputs=(Output("IMAGE"),),
    output_node=True,
)
def crash(
    context: NodeContext, *, how: str, exit_code: int, seconds: float, salt: int, image: Any = None
) -> NoReturn:
    """End the process after a while, nothing being closed or cleaned up."""
    context.sleep(seconds)
    if how == "exit":
        os._exit(exit_code)
    os.kill(os.getpid(), getattr(signal, how))
    _for_ever()


@registry.node(
    "EaselHang",
    display_name="Hang",
    category=CATEGORY,
    python_module=MODULE,
    description="Never returns and does not look for interrupts. The process can be killed.",
    required={"silent": flag(False), "salt": SALT},
    optional=PASSED,
    outputs=(Output("IMAGE"),),
    output_node=True,
)
def hang(_context: NodeContext, silent: bool, salt: int, image: Any = None) -> NoReturn:
    """Never return. With ``silent`` no other thread runs either: HTTP stops answering, and only SIGKILL helps."""
    if silent:
        # An endless loop in C, which never hands the interpreter to another thread.
        collections.deque(itertools.repeat(None), maxlen=0)
    _for_ever()


def _for_ever() -> NoReturn:
    while True:
        threading.Event().wait()


_kept: list[Pixels] = []


@registry.node(
    "EaselAllocate",
    display_name="Allocate",
    category=CATEGORY,
    python_module=MODULE,
    description="Takes memory; or fails as if there were none; or ends the process as the kernel does when there is none.",
    required={
        "megabytes": integer(100, 0, 1_000_000),
        "outcome": choice("allocate", "error", "killed"),
        "keep": flag(False),
        "salt": SALT,
    },
    optional=PASSED,
    outputs=(Output("IMAGE"),),
    output_node=True,
)
def allocate(
    context: NodeContext,
    *,
    megabytes: int,
    outcome: str,
    keep: bool,
    salt: int,
    image: Pixels | None = None,
) -> tuple[Pixels]:
    """Take memory and touch every page of it; with ``keep`` the process holds it until it ends.

    Raises MemoryError for ``outcome="error"`` and when the memory is really not there.
    """
    if outcome == "error":
        raise MemoryError(f"Unable to allocate {megabytes} MiB on purpose")
    if outcome == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
        _for_ever()
    taken = []
    for _ in range(megabytes):
        taken.append(np.ones(2**18, np.float32))
        context.check_interrupt()
    if keep:
        _kept.extend(taken)
    return (swatch(salt) if image is None else image,)
