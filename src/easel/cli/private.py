"""The agent a run talks to: the one that was named, the one of this machine, or a private one."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from easel.cli.processes import agent, choose_port

LOCAL_HOST, LOCAL_PORT = "127.0.0.1", 9000
"""Where an agent listens by default."""


def agent_answers(host: str, port: int) -> bool:
    """Tell whether an Easel agent, and not just any server, listens there."""
    connection = http.client.HTTPConnection(host, port, timeout=3)
    try:
        connection.request("GET", f"/api/status?id={uuid.uuid4().hex}")
        found = json.loads(connection.getresponse().read(10_000))
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return isinstance(found, dict) and found.get("code") == "task_not_found"


@contextlib.contextmanager
def agent_for(url: str | None) -> Iterator[str]:
    """Give the URL of an agent until the block ends.

    That is the one named, else ``EASEL_URL``, else the one on port 9000 of this machine, else a private one with the
    built-in engine and a temporary data directory. Raises EngineUnavailable when that does not start.
    """
    named = url or os.environ.get("EASEL_URL")
    if named:
        yield named
        return
    local = f"http://{LOCAL_HOST}:{LOCAL_PORT}"
    if agent_answers(LOCAL_HOST, LOCAL_PORT):
        yield local
        return
    print(
        f"no agent at {local}: starting a private one with the built-in engine for this run",
        file=sys.stderr,
        flush=True,
    )
    with TemporaryDirectory(prefix="easel-run-", ignore_cleanup_errors=True) as folder:
        port = choose_port(LOCAL_HOST, 0)
        private = f"http://{LOCAL_HOST}:{port}"
        with agent(private, port, Path(folder)):
            yield private
