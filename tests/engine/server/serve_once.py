"""Runs an engine as a process of its own: ``python -m tests.engine.server.serve_once DIR PORT [PACK …]``.

With ``--child`` first it runs one as its child, prints the child's ready line, and waits.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import uvloop

from easel.engine.serve import serve
from easel.settings import EngineSettings


def main(arguments: list[str]) -> None:
    if arguments[0] == "--child":
        child = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, *arguments[1:]], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        sys.stdout.write(f"{child.pid} " + child.stdout.readline().decode())
        sys.stdout.flush()
        child.wait()
        return
    folder, port, *packs = arguments
    settings = EngineSettings(data_dir=Path(folder), port=int(port), packs=tuple(packs))
    uvloop.run(serve(settings, with_parent=True))


if __name__ == "__main__":
    main(sys.argv[1:])
