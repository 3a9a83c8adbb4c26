"""An engine of a few lines, for tests of what is around engines: says that it is there, and what it is asked to be.

``--port N``; ``--stubborn``: what it starts ignores SIGTERM, in a session of its own, with nothing in its environment; ``--chatty``: prints many lines;
``--big MIB``: holds so much memory; ``--maps FILE``: reads a file by mapping it, as models are.
"""

from __future__ import annotations

import contextlib
import http.server
import mmap
import os
import signal
import subprocess
import sys
from types import FrameType

SLEEP = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"system": {}, "devices": [], "queue_running": [], "queue_pending": []}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def leave(_number: int, _frame: FrameType | None) -> None:
    say("engine leaves")
    os._exit(0)


def main() -> None:
    words = sys.argv[1:]
    signal.signal(signal.SIGTERM, leave)
    stubborn = "--stubborn" in words
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", STUBBORN if stubborn else SLEEP],
        start_new_session=stubborn,
        env={} if stubborn else None,
    )
    held = bytearray()
    if "--big" in words:
        held = bytearray(os.urandom(1 << 20) * int(words[words.index("--big") + 1]))
    if "--maps" in words:
        with open(words[words.index("--maps") + 1], "rb") as file:  # noqa: PTH123 - a short program
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
        sum(mapped[at] for at in range(0, len(mapped), 4096))
    if "--chatty" in words:
        for number in range(2000):
            say(f"line {number}")
    port = int(words[words.index("--port") + 1])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Answers)
    greeting = os.environ.get("GREETING", "")
    say(f"engine speaks {greeting} child={child.pid} held={len(held)}")
    server.serve_forever()


if __name__ == "__main__":
    main()
