# ruff: noqa: T201 - it prints what an engine prints
"""A tiny engine process for supervision: answers ComfyUI's health questions, and misbehaves on demand.

Run as ``python stand_in.py <port> <behaviour>…``; on the standard library alone, so that it starts quickly.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, BEHAVIOURS = int(sys.argv[1]), set(sys.argv[2:])


class Handler(BaseHTTPRequestHandler):
    """Answers like ComfyUI; GET /crash and GET /close are ours."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/crash":
            sys.stderr.write("fatal: the GPU fell off the bus\n")
            sys.stderr.flush()
            os._exit(77)
        remaining = 1 if "dead-worker" in BEHAVIOURS else 0
        answers = {
            "/system_stats": {
                "system": {"argv": sys.argv, "cuda": os.environ.get("CUDA_VISIBLE_DEVICES")}
            },
            "/prompt": {"exec_info": {"queue_remaining": remaining}},
            "/queue": {"queue_running": [], "queue_pending": [[0, "p", {}, {}, []]] * remaining},
        }
        body = json.dumps(answers[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Be quiet."""


def main() -> None:
    print("starting", flush=True)
    if "crash-at-start" in BEHAVIOURS:
        sys.exit("ModuleNotFoundError: No module named 'torch'")
    if "deaf" in BEHAVIOURS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "grandchild" in BEHAVIOURS:
        for new_session in (False, True):
            child = subprocess.Popen(
                [sys.executable, "-c", "import time; time.sleep(600)"],
                start_new_session=new_session,
            )
            print("grandchild", child.pid, flush=True)
    if "flood" in BEHAVIOURS:
        for number in range(200_000):
            print("line", number)
        print("no end " * 100_000, flush=True)
        sys.stdout.write("10%\r20%\r\xff30%")
        sys.stdout.flush()
    if "never-ready" in BEHAVIOURS:
        time.sleep(600)
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()


main()
