"""What the agent's handlers share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from easel.agent.link import EngineLink
from easel.agent.record import TaskRecord
from easel.agent.tasks import Tasks
from easel.settings import AgentSettings
from easel.storage.outputs import OutputFiles

BASE64_LIMIT = 256 * 1024 * 1024
"""Bytes of one file that are returned as base64."""


@dataclass(frozen=True, slots=True)
class AgentState:
    """One agent."""

    settings: AgentSettings
    tasks: Tasks
    link: EngineLink
    outputs: OutputFiles
    proxy: aiohttp.ClientSession

    async def with_base64(
        self, record: TaskRecord, contents: Mapping[str, str] | None = None
    ) -> dict[str, object]:
        """Return the node map with the files' content in ``results``; what is not in ``contents`` is read.

        Raises OutputFailed for a file that is too large, FileNotFound for one that has been removed.
        """
        nodes: dict[str, object] = {}
        for node_id, progress in record.nodes.items():
            results: list[str] = []
            for entry in progress.images:
                if "url" in entry:
                    name = entry["filename"]
                    at_hand = contents.get(name) if contents else None
                    results.append(
                        at_hand or await self.outputs.read_base64(record.id, name, BASE64_LIMIT)
                    )
            nodes[node_id] = {
                "max": progress.max,
                "value": progress.value,
                "start": progress.start,
                "last_updated": progress.last_updated,
                "images": progress.images,
                "results": results,
            }
        return nodes


STATE: web.AppKey[AgentState] = web.AppKey("state", AgentState)
