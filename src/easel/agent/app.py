"""The agent's HTTP application: its own doors, and the way through to ComfyUI for everything else."""

from __future__ import annotations

import logging

from aiohttp import web

from easel.agent import origins, proxy, run_door, socket_door, status_door, wire
from easel.agent.first_request import FirstRequests
from easel.agent.state import STATE, AgentState
from easel.errors import BadRequest, EaselError

log = logging.getLogger(__name__)


@web.middleware
async def errors_as_json(request: web.Request, handler: origins.Handler) -> web.StreamResponse:
    """Make every error the typed JSON that the agent speaks; what nobody foresaw is logged and says nothing of us."""
    try:
        return await handler(request)
    except EaselError as error:
        task_id = wire.task_id_of(request)
        headers = {"task-id": task_id} if task_id and wire_safe(task_id) else None
        return wire.error_answer(error, headers)
    except web.HTTPException as refused:
        if refused.status < 400:
            raise
        reason = BadRequest(f"{request.method} {request.path}: {refused.reason}")
        answer = wire.json_answer(wire.error_body(reason), refused.status)
        if "Allow" in refused.headers:
            answer.headers["Allow"] = refused.headers["Allow"]
        return answer
    except Exception:
        log.exception("%s %s", request.method, request.path)
        return wire.error_answer(EaselError("internal error; the agent's log has more"))


def wire_safe(text: str) -> bool:
    """Tell whether a text may stand in a header."""
    return text.isascii() and text.isprintable()


_METHODS = {"/api/run": ["POST"], "/api/status": ["GET", "HEAD", "DELETE"]}


async def own_paths_only(request: web.Request) -> web.StreamResponse:
    """Refuse other methods on the agent's own paths: ComfyUI has no such routes."""
    raise web.HTTPMethodNotAllowed(request.method, _METHODS[request.path])


def make_app(state: AgentState, first: FirstRequests) -> web.Application:
    """Return the application."""
    app = web.Application(
        middlewares=[first.middleware(), origins.check_origin, errors_as_json], client_max_size=0
    )
    app[STATE] = state
    app.on_response_prepare.append(origins.add_headers)
    app.router.add_post("/api/run", run_door.run, expect_handler=run_door.expect)
    app.router.add_get("/api/run/ws", socket_door.run_socket, allow_head=False)
    app.router.add_get("/api/status", status_door.get_status)
    app.router.add_delete("/api/status", status_door.delete_status)
    app.router.add_get("/api/outputs/{task}/{name}", status_door.get_output)
    app.router.add_get("/api/agent", status_door.get_agent)
    for path in _METHODS:
        app.router.add_route("*", path, own_paths_only)
    app.router.add_route("*", "/{rest:.*}", proxy.proxy)
    return app
