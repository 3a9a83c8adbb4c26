"""Outputs on their way to the service's storage, for an agent that does not mount it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from easel.agent.joining.backoff import Backoff
from easel.agent.task import Task
from easel.errors import OutputFailed
from easel.link import messages
from easel.storage.outputs import OutputFiles
from easel.workflow.outputs import OutputItem

log = logging.getLogger(__name__)

TRY_AGAIN = frozenset({401, 408, 409, 429, 500, 502, 503, 504})
"""Answers of a gateway that may do better next time. Others are the file's fault, or the disk's (507). That a token or lease is
good no more is for the link to say: a gateway that was just started does not know its leases yet."""
ANSWER_TIMEOUT = 120.0
"""Seconds a gateway may take for the next step of an upload."""


class Uploads:
    """Sends stored outputs to the gateway, each until it has arrived or its task is over.

    ``lease_of`` tells the lease under which a task runs; outputs of tasks without one are not the gateway's.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        gateway_url: str,
        outputs: OutputFiles,
        lease_of: Callable[[str], str | None],
    ) -> None:
        self._http = http
        self._lease_of = lease_of
        self._url = gateway_url
        self._outputs = outputs

    async def __call__(self, task: Task, item: OutputItem, entry: dict[str, Any]) -> None:
        """Send an output that `OutputFiles.store` has stored and described.

        Returns when it has arrived, or when the task is over meanwhile. Raises OutputFailed, naming the node.
        """
        lease = self._lease_of(task.id)
        if lease is None:
            return
        sending = asyncio.create_task(self._send(task.id, lease, item, entry))
        try:
            await asyncio.wait([sending, task.finished], return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
        finally:
            if not sending.done():
                sending.cancel()
                await asyncio.wait([sending])

    async def _send(self, folder: str, lease: str, item: OutputItem, entry: dict[str, Any]) -> None:
        name, backoff = str(entry["filename"]), Backoff()
        headers = {"Content-Type": str(entry["media_type"]), messages.LEASE_HEADER: lease}
        file = (await self._outputs.find(folder, name)).path
        while True:
            try:
                refusal = await self._put(folder, name, file, headers)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                log.info("output %s: not sent, trying again: %s", name, error)
            else:
                if refusal is None:
                    return
                raise OutputFailed(
                    f"output {item.filename!r} of node {item.node_id!r} was not taken by the gateway: {refusal}",
                    hint="is the disk of the service's storage full?",
                    node_id=item.node_id,
                    node_type=item.node_type,
                )
            await asyncio.sleep(backoff.pause())

    async def _put(self, folder: str, name: str, file: Path, headers: dict[str, str]) -> str | None:
        """Send once; returns why it was refused for good. Raises ClientError or OSError where another try may help."""
        url = f"{self._url}{messages.FILES_PATH}/{quote(folder, safe='')}/{quote(name, safe='')}"
        try:
            body = await asyncio.to_thread(file.open, "rb")
        except (FileNotFoundError, PermissionError) as error:
            return str(error)
        try:
            async with self._http.put(
                url,
                data=body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None, connect=10.0, sock_read=ANSWER_TIMEOUT),
                allow_redirects=False,
            ) as answer:
                if 200 <= answer.status < 300:
                    return None
                if answer.status in TRY_AGAIN:
                    raise aiohttp.ClientError(f"the gateway answers {answer.status}")
                said = (await answer.content.read(500)).decode(errors="replace")
                return f"{answer.status} {answer.reason or ''} {said}".strip()
        finally:
            await asyncio.to_thread(body.close)
