"""``/api/status``: what is known of a task, and cancelling it. ``/api/outputs``: the stored files. ``/api/agent``: ourselves."""

from __future__ import annotations

from aiohttp import web

from easel import __version__
from easel.agent import wire
from easel.agent.record import TaskRecord
from easel.agent.state import STATE, AgentState
from easel.errors import BadRequest


def _task_id(request: web.Request) -> str:
    task_id = request.query.get("id") or request.query.get("task_id")
    if not task_id:
        raise BadRequest("no task named", hint="/api/status?id=<task id>")
    return task_id


async def _known(state: AgentState, request: web.Request, record: TaskRecord) -> web.Response:
    headers = {**wire.task_headers(record), "Cache-Control": "no-store"}
    base64 = wire.flag(request, "output_base64") and record.state == "succeeded"
    nodes: object = await state.with_base64(record) if base64 else record.nodes
    if wire.flag(request, "detail"):
        shown = wire.detail(record, state.tasks.position(record.id))
        if base64:
            shown["nodes"] = nodes
        return wire.json_answer(shown, headers=headers)
    if record.error is not None:
        body = {**wire.error_body(record.error), "nodes": record.nodes}
        return wire.json_answer(body, headers=headers)
    return wire.json_answer(nodes, headers=headers)


async def get_status(request: web.Request) -> web.Response:
    """Answer the node map; for a failed or cancelled task the error; everything with ``detail=true``."""
    state = request.app[STATE]
    return await _known(state, request, await state.tasks.record(_task_id(request)))


async def delete_status(request: web.Request) -> web.Response:
    """Cancel the task; doing it again, or to a task that is over, changes nothing."""
    state = request.app[STATE]
    return await _known(state, request, await state.tasks.cancel(_task_id(request)))


async def get_output(request: web.Request) -> web.StreamResponse:
    """Serve a stored output, with Range and ETag."""
    outputs = request.app[STATE].outputs
    found = await outputs.find(request.match_info["task"], request.match_info["name"])
    headers = {
        "Content-Type": found.media_type,
        "X-Content-Type-Options": "nosniff",
        # A workflow may save HTML or SVG with scripts: nothing of it may act as a page of this origin.
        "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'",
        "Cache-Control": "private, max-age=31536000, immutable",
    }
    return web.FileResponse(found.path, headers=headers)


async def get_agent(request: web.Request) -> web.Response:
    """Say how the agent and its engine do; 503 while no task could run."""
    state = request.app[STATE]
    body = {
        "version": __version__,
        "name": state.settings.name,
        "engine": {
            "state": state.link.state,
            "ready": state.link.ready,
            "starts": state.link.process.starts if state.link.process else None,
        },
        "tasks": {"waiting": state.tasks.waiting, "running": state.tasks.running},
    }
    return wire.json_answer(body, 200 if state.link.ready else 503)
