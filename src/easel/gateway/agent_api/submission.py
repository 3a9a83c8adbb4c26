"""From a body to an accepted task: parsed, validated, seeds drawn, stored."""

from __future__ import annotations

import asyncio
import random
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers, QueryParams

from easel import fc
from easel.errors import BadRequest, TaskNotFound
from easel.fleet.knowledge import Knowledge
from easel.settings import GatewaySettings
from easel.tasks.model import NewTask, Task, TaskBody
from easel.tasks.tasks import Tasks, now_ms
from easel.workflow.parse import ParsedBody, parse_prompt
from easel.workflow.refusal import refusal
from easel.workflow.seeds import randomise
from easel.workflow.signature import signature
from easel.workflow.validate import validate_prompt

LARGE = 256 * 1024
"""Bytes of a body from which on it is parsed in a thread."""
PRIORITY_HEADER = "Easel-Priority"
DEADLINE_HEADER = "Easel-Deadline-Seconds"
MOST_PRIORITY = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a request says besides the prompt."""

    task_id: str | None
    priority: int = 0
    deadline: int | None = None

    @classmethod
    def of(cls, headers: Headers, query: QueryParams) -> Wishes:
        """Read headers and query. Raises InvalidTaskId and BadRequest, naming the field."""
        named = (headers.get(name) for name in fc.TASK_ID_HEADERS)
        asked = (query.get(name) for name in fc.TASK_ID_QUERY)
        task_id = next((value for value in (*named, *asked) if value), None)
        if task_id is not None:
            fc.check_task_id(task_id)
        seconds = _number(headers, DEADLINE_HEADER, 1, 366 * 24 * 3600)
        return cls(
            task_id=task_id,
            priority=_number(headers, PRIORITY_HEADER, -MOST_PRIORITY, MOST_PRIORITY) or 0,
            deadline=now_ms() + seconds * 1000 if seconds is not None else None,
        )


def _number(headers: Headers, name: str, least: int, most: int) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    try:
        value = int(text)
    except ValueError:
        value = most + 1
    if not least <= value <= most:
        raise BadRequest(f"the header {name} must be a whole number from {least} to {most}")
    return value


class Submission:
    """The way into the queue that the agent API's doors share."""

    def __init__(self, settings: GatewaySettings, tasks: Tasks, knowledge: Knowledge) -> None:
        self._settings = settings
        self._tasks = tasks
        self._knowledge = knowledge
        self._rng = random.SystemRandom()

    async def parse(self, body: bytes) -> ParsedBody:
        """Parse a body without holding up others. Raises NotJson and InvalidPrompt."""
        if len(body) < LARGE:
            return parse_prompt(body, max_nodes=self._settings.max_nodes)
        return await asyncio.to_thread(parse_prompt, body, max_nodes=self._settings.max_nodes)

    async def submit(
        self, service: str, owner: str, wishes: Wishes, body: ParsedBody, most_waiting: int
    ) -> Task:
        """Accept a task, or return the one that has this id and body.

        Raises InvalidPrompt, TaskConflict, QueueFull and StoreFailed; then nothing was accepted.
        """
        mark = signature(body.prompt, body.options)
        if wishes.task_id is not None:
            # A repeated call gets its task whatever the engine knows by now.
            try:
                known = await self._tasks.get(service, owner, wishes.task_id)
            except TaskNotFound:
                pass
            else:
                if known.signature == mark:
                    return known
        new = await self._prepared(service, owner, wishes, body, mark)
        task, _ = await self._tasks.submit(new, most_waiting)
        return task

    async def _prepared(
        self, service: str, owner: str, wishes: Wishes, body: ParsedBody, mark: str
    ) -> NewTask:
        info = await self._knowledge.object_info(service)
        outputs = None
        if info is not None:
            # What depends on values is left to the engine, which knows its files and models.
            verdict = validate_prompt(body.prompt, info, values=False, types=True)
            if verdict.error is not None and verdict.error["type"] == "invalid_prompt":
                newer = await self._knowledge.object_info(service, newer=True)
                if newer is not None and newer is not info:
                    info = newer
                    verdict = validate_prompt(body.prompt, info, values=False, types=True)
            if verdict.error is not None:
                raise refusal(verdict.error, verdict.node_errors)
            outputs = verdict.outputs
        prompt, seeds = randomise(body.prompt, self._rng, info)
        return NewTask(
            service=service,
            owner=owner,
            id=wishes.task_id or str(uuid.uuid4()),
            signature=mark,
            body=TaskBody(prompt=prompt, extra_data=body.options.extra_data, outputs=outputs),
            priority=wishes.priority,
            deadline=wishes.deadline,
            seeds=seeds,
        )
