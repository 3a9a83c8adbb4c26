"""The real command, as a subprocess."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        found: dict[str, Any] = json.loads(self.out)
        return found


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what would change the commands' behaviour, and with `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
    kept.pop("COMFYUI_PATH", None)
    return {**kept, **(extra or {})}


async def easel(
    *arguments: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    timeout: float = 60,
) -> Result:
    """Run ``easel`` with these arguments until it ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "easel", *arguments),
        cwd=cwd,
        env=environment(env),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout):
            out, err = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Result(process.returncode, out.decode(), err.decode())
