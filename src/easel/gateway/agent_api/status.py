"""``/api/status``: what is known of a task, and cancelling it. ``/api/outputs``: the stored files."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from easel import fc
from easel.errors import BadRequest, EaselError, FileNotFound, TaskNotFound
from easel.gateway.agent_api.answers import HIDDEN, error_of, nodes_of, with_base64
from easel.gateway.agent_api.door import Door, caller_of, flag, prefix_of
from easel.gateway.agent_api.reply import error_reply, json_reply
from easel.tasks.model import Task


class StatusEndpoint:
    """``GET`` and ``DELETE /api/status?id=…``."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except EaselError as error:
            response = error_reply(error)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        door, caller = self._door, caller_of(request)
        query = request.query_params
        task_id = query.get("id") or query.get("task_id")
        if not task_id:
            raise BadRequest("no task named", hint="/api/status?id=<task id>")
        if request.method == "DELETE":
            task = await door.tasks.cancel(caller.service, caller.owner, task_id)
        else:
            task = await door.tasks.get(caller.service, caller.owner, task_id)
        return await self._known(request, task)

    async def _known(self, request: Request, task: Task) -> Response:
        """Return the node map; for a failed or cancelled task the error; everything with ``detail=true``."""
        query, prefix = request.query_params, prefix_of(request)
        headers = {**fc.task_headers(task), "Cache-Control": "no-store"}
        nodes = nodes_of(task, prefix)
        if flag(query, "output_base64") and task.state == "succeeded":
            files = self._door.files(caller_of(request).service)
            nodes = await with_base64(task, nodes, files)
        error = error_of(task)
        if flag(query, "detail"):
            shown = fc.detail(task, await self._door.position(task), HIDDEN)
            shown["nodes"], shown["error"] = nodes, error
            return json_reply(shown, headers=headers)
        if error is not None:
            return json_reply({**fc.error_body(error), "nodes": nodes}, headers=headers)
        return json_reply(nodes, headers=headers)


class OutputEndpoint:
    """``GET /api/outputs/{folder}/{name}``: a stored output, with Range and ETag."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        try:
            response = await self._file(request)
        except EaselError as error:
            response = error_reply(error)
        await response(scope, receive, send)

    async def _file(self, request: Request) -> Response:
        caller, folder = caller_of(request), request.path_params["folder"]
        missing = FileNotFound("there is no such output", hint="outputs may have been removed")
        try:
            task = await self._door.tasks.store.get_uid(folder.partition(".")[0])
        except TaskNotFound:
            raise missing from None
        if (task.service, task.owner) != (caller.service, caller.owner):
            raise missing
        files = self._door.files(caller.service)
        found = await files.find(folder, request.path_params["name"])
        headers = {
            "X-Content-Type-Options": "nosniff",
            # A workflow may save HTML or SVG with scripts: nothing of it may act as a page of this origin.
            "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'",
            "Cache-Control": "private, max-age=31536000, immutable",
        }
        return FileResponse(found.path, headers=headers, media_type=found.media_type)
