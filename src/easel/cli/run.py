"""`easel run`: one workflow, from a file to its pictures."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easel.cli.agent_client import AgentClient, agent_url
from easel.cli.assign import assign
from easel.cli.attach import Attachment, attach
from easel.cli.display import Display, display_for
from easel.cli.private import agent_for
from easel.cli.report import INTERRUPTED, TERMINATED, print_json, report
from easel.cli.saving import Text, make_folder, save_outputs, texts
from easel.cli.wire import Update
from easel.cli.workflow_file import read_workflow
from easel.errors import EaselError, EngineUnavailable, TaskCancelled
from easel.workflow.parse import ParsedBody
from easel.workflow.types import Prompt

INLINE_BYTES = 8 * 1024 * 1024
"""Files up to this size together travel inside the prompt as ``data:`` URIs; larger ones are uploaded first."""

CANCEL_TIMEOUT = 10.0
"""Seconds the agent has to answer that the task is cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the command line gave."""

    workflow: str
    sets: list[str]
    inputs: list[str]
    output: Path
    url: str | None
    as_json: bool
    timeout: float | None
    task_id: str | None
    service: Service | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service of a platform to run on, instead of an agent."""

    name: str
    gateway: str | None
    token: str | None
    home: Path | None


@dataclass(slots=True)
class Outcome:
    """What is known of the run; printed with ``--json`` whatever happens."""

    task_id: str
    state: str = "not started"
    outputs: list[Path] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    detail: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        return {
            "task_id": self.task_id,
            "state": self.state,
            "outputs": [str(path) for path in self.outputs],
            "texts": [{"node": text.node_id, "text": text.text} for text in self.texts],
            "seeds": self.detail.get("seeds") or {},
            "node_errors": self.detail.get("node_errors") or {},
            "error": None,
        }


class Interrupted(TaskCancelled):
    """Ended by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted: the task is cancelled")
        self.exit_code = INTERRUPTED if number == signal.SIGINT else TERMINATED


def run(options: RunOptions) -> int:
    """Run the workflow and return the exit code."""
    outcome = Outcome(options.task_id or uuid.uuid4().hex)
    # Without this, SIGTERM would leave a private agent behind.
    before = signal.signal(signal.SIGTERM, _end)
    try:
        parsed = read_workflow(options.workflow)
        make_folder(options.output)
        with _target(options) as (url, token):
            asyncio.run(_run(options, parsed, url, token, outcome))
    except Interrupted as error:
        report(error, as_json=options.as_json, also=outcome.to_json())
        return error.exit_code
    except EaselError as error:
        return report(error, as_json=options.as_json, also=outcome.to_json())
    finally:
        signal.signal(signal.SIGTERM, before)
    if options.as_json:
        print_json(outcome.to_json())
    else:
        _print(outcome)
    return 0


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _print(outcome: Outcome) -> None:
    for text in outcome.texts:
        print(text.text)
    for path in outcome.outputs:
        print(path)
    sys.stdout.flush()
    for place, seed in (outcome.detail.get("seeds") or {}).items():
        print(f"seed of {place}: {seed}", file=sys.stderr)
    for node_id in outcome.detail.get("node_errors") or {}:
        print(f"warning: node {node_id} was left out: its inputs are not valid", file=sys.stderr)
    if not outcome.outputs and not outcome.texts:
        print("the workflow gave no output", file=sys.stderr)


@contextlib.contextmanager
def _target(options: RunOptions) -> Iterator[tuple[str, str | None]]:
    """Give the URL, and for a service its token, until the block ends."""
    if options.service is None:
        with agent_for(options.url) as url:
            yield url, None
        return
    from easel.cli.platform.control import call, service_path
    from easel.cli.platform.where import find

    service = options.service
    where = find(service.gateway, service.token, service.home)
    found = call(where, "GET", service_path(service.name, "endpoint"))
    yield f"{where.url}/api/predict/{service.name}", found["token"]


async def _run(
    options: RunOptions, parsed: ParsedBody, url: str, token: str | None, outcome: Outcome
) -> None:
    """Run the task; cancel it at a signal and when the time is over."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    signals: list[int] = []

    def stop(number: int) -> None:
        signals.append(number)
        loop.remove_signal_handler(signal.SIGINT)  # a second Ctrl-C ends at once
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    name = Path(options.workflow).name if options.workflow != "-" else "workflow"
    async with AgentClient.connect(agent_url(url), token) as client:
        try:
            with display_for(parsed.prompt, name) as display:
                async with asyncio.timeout(options.timeout):
                    await _submit(client, options, parsed, display, outcome)
        except TimeoutError:
            await _cancel(client, outcome)
            raise TaskCancelled(
                f"the task did not finish within {options.timeout:g} s and is cancelled",
                hint="allow more with --timeout",
            ) from None
        except asyncio.CancelledError:
            if not signals:
                raise
            task.uncancel()
            await _cancel(client, outcome)
            raise Interrupted(signals[0]) from None


async def _cancel(client: AgentClient, outcome: Outcome) -> None:
    with contextlib.suppress(EaselError, TimeoutError):
        async with asyncio.timeout(CANCEL_TIMEOUT):
            await client.cancel(outcome.task_id)
    outcome.state = "cancelled"


async def _submit(
    client: AgentClient,
    options: RunOptions,
    parsed: ParsedBody,
    display: Display,
    outcome: Outcome,
) -> None:
    prompt = await _fill(client, options, parsed.prompt, display)
    # `parse` has looked at the file; what it gave as extra data goes on to the engine.
    body = {"prompt": prompt, "extra_data": parsed.options.extra_data}
    async for update in client.run(body, outcome.task_id):
        outcome.state = update.state or outcome.state
        if update.type == "error":
            outcome.state = update.state or "failed"
            raise update.error()
        if update.type in ("progress", "result"):
            display.update(update)
        if update.type == "result":
            await _finish(client, options, update, outcome)


async def _finish(
    client: AgentClient, options: RunOptions, update: Update, outcome: Outcome
) -> None:
    nodes = update.nodes()
    outcome.state = update.state or "succeeded"
    outcome.texts = texts(nodes)
    with contextlib.suppress(EaselError):
        outcome.detail = await client.status(outcome.task_id)
    outcome.outputs = await save_outputs(client, nodes, options.output)


async def _fill(
    client: AgentClient, options: RunOptions, prompt: Prompt, display: Display
) -> Prompt:
    """Put values and files of the command line into the prompt."""
    if not options.sets and not options.inputs:
        return prompt
    object_info = await client.object_info(display.note)
    prompt, changed = assign(prompt, options.sets, object_info)
    files = await asyncio.to_thread(attach, prompt, options.inputs, object_info, changed)
    inline = sum(len(file.data or b"") for file in files) <= INLINE_BYTES
    for file in files:
        value = await _value(client, file, inline=inline)
        prompt[file.node_id]["inputs"][file.input_name] = value
    return prompt


async def _value(client: AgentClient, file: Attachment, *, inline: bool) -> str:
    """Return what goes into the input: a URL, a ``data:`` URI, or the name of an uploaded file."""
    if file.data is None:
        return file.name
    if inline:
        return file.data_uri()
    digest = await asyncio.to_thread(hashlib.sha256, file.data)
    name = f"{digest.hexdigest()[:16]}-{Path(file.name).name}"
    try:
        return await client.upload(name, file.data, "easel")
    except EaselError as error:
        if isinstance(error, EngineUnavailable):
            raise
        error.message = f"{file.name} could not be uploaded: {error.message}"
        raise
