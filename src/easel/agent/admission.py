"""What a task must pass before it is accepted: the engine knows its nodes, its links hold, its files are there."""

from __future__ import annotations

import random

from easel.agent.input_files import InputFiles
from easel.agent.link import EngineLink
from easel.agent.task import Task
from easel.settings import AgentSettings
from easel.workflow.parse import ParsedBody
from easel.workflow.refusal import refusal
from easel.workflow.seeds import randomise
from easel.workflow.types import ObjectInfo, Prompt
from easel.workflow.validate import validate_prompt

QUICK_INFO = 1.0
"""Seconds an asynchronous submission waits for ``/object_info`` while the engine starts; without it, the engine validates."""


class Admission:
    """Makes a body into what the engine gets, or refuses it."""

    def __init__(self, settings: AgentSettings, link: EngineLink, inputs: InputFiles) -> None:
        self._settings = settings
        self._link = link
        self._inputs = inputs
        self._rng = random.SystemRandom()

    async def prepare(self, task: Task, body: ParsedBody) -> None:
        """Fill in the task's prompt, seeds and output nodes. Raises InvalidPrompt, InputRejected, StoreFailed, EngineError."""
        patience = QUICK_INFO if task.detached else self._settings.supervision.start_timeout
        info = await self._link.object_info(patience)
        if info is not None:
            info = await self._validate(task, body.prompt, info)
        prompt, task.record.seeds = randomise(body.prompt, self._rng, info)
        task.prompt = await self._inputs.materialise(prompt, info)
        task.extra_data = body.options.extra_data

    async def _validate(self, task: Task, prompt: Prompt, info: ObjectInfo) -> ObjectInfo:
        """Refuse what no engine would run; what depends on values is left to the engine."""
        verdict = validate_prompt(prompt, info, values=False, types=True)
        if verdict.error is not None and verdict.error["type"] == "invalid_prompt":
            # Perhaps the engine knows the class by now.
            newer = await self._link.object_info(QUICK_INFO, newer=True)
            if newer is not None and newer is not info:
                info = newer
                verdict = validate_prompt(prompt, info, values=False, types=True)
        if verdict.error is not None:
            raise refusal(verdict.error, verdict.node_errors)
        task.outputs = verdict.outputs
        return info
