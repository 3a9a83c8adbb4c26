"""``/prompt``, ``/queue``, ``/history``, ``/interrupt``, ``/free`` and ``/object_info``: the engine's own routes."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from easel.engine.engine import PromptRefused
from easel.engine.server.bodies import decode as decode_body
from easel.engine.server.bodies import (
    encode,
    ids,
    json_bytes,
    json_response,
    read,
    read_object,
)
from easel.engine.server.state import STATE
from easel.errors import BadRequest, NotJson

log = logging.getLogger(__name__)

routes = web.RouteTableDef()


@routes.get("/prompt")
async def get_prompt(request: web.Request) -> web.Response:
    """Say how many prompts wait or run."""
    return json_response({"exec_info": {"queue_remaining": request.app[STATE].engine.remaining}})


@routes.post("/prompt")
async def post_prompt(request: web.Request) -> web.Response:
    """Validate a prompt and put it into the queue; 400 with ``error`` and ``node_errors`` when it cannot run."""
    engine = request.app[STATE].engine
    log.info("got prompt")
    body = await read(request)

    def submit() -> bytes:
        return encode(engine.submit(decode_body(body)))

    try:
        return json_bytes(await asyncio.to_thread(submit))
    except PromptRefused as refused:
        log.warning("invalid prompt: %s", refused.error)
        return json_response({"error": refused.error, "node_errors": refused.node_errors}, 400)


@routes.get("/queue")
async def get_queue(request: web.Request) -> web.Response:
    """List running and pending prompts."""
    engine = request.app[STATE].engine
    return json_bytes(await asyncio.to_thread(lambda: encode(engine.queue())))


@routes.post("/queue")
async def post_queue(request: web.Request) -> web.Response:
    """Remove pending prompts: all (``clear``) or some (``delete``). Running ones are not touched."""
    engine = request.app[STATE].engine
    body = await read_object(request)
    if body.get("clear"):
        engine.clear_pending()
    if "delete" in body:
        engine.delete_pending(ids(body["delete"], "delete"))
    return web.Response()


def whole_number(request: web.Request, name: str) -> int | None:
    """Read an integer from the query.

    Raises BadRequest.
    """
    value = request.query.get(name)
    if value is None:
        return None
    try:
        return int(value)
    except ValueError:
        raise BadRequest(f"{name} is not a whole number: {value!r}") from None


@routes.get("/history")
async def get_history(request: web.Request) -> web.Response:
    """List ended prompts, oldest first."""
    engine = request.app[STATE].engine
    max_items = whole_number(request, "max_items")
    offset = whole_number(request, "offset")

    def listing() -> bytes:
        return encode(engine.history(max_items=max_items, offset=-1 if offset is None else offset))

    return json_bytes(await asyncio.to_thread(listing))


@routes.get("/history/{prompt_id}")
async def get_history_of(request: web.Request) -> web.Response:
    """Return how one prompt ended; ``{}`` while it has not, or when it is unknown."""
    engine = request.app[STATE].engine
    return json_response(engine.history(prompt_id=request.match_info["prompt_id"]))


@routes.post("/history")
async def post_history(request: web.Request) -> web.Response:
    """Forget ended prompts: all (``clear``) or some (``delete``)."""
    engine = request.app[STATE].engine
    body = await read_object(request)
    if body.get("clear"):
        engine.clear_history()
    if "delete" in body:
        engine.delete_history(ids(body["delete"], "delete"))
    return web.Response()


@routes.post("/interrupt")
async def post_interrupt(request: web.Request) -> web.Response:
    """Interrupt the running prompt, or the named one if it runs. An empty body means whatever runs."""
    engine = request.app[STATE].engine
    body = await read(request)
    data = decode_body(body) if body.strip() else {}
    if not isinstance(data, dict):
        raise NotJson("the request body is not a JSON object")
    prompt_id = data.get("prompt_id")
    if prompt_id is not None and not isinstance(prompt_id, str):
        raise BadRequest("'prompt_id' must be a string")
    engine.interrupt(prompt_id or None)
    return web.Response()


@routes.post("/free")
async def post_free(request: web.Request) -> web.Response:
    """Drop cached results (``free_memory``) and models (``unload_models``) before the next prompt."""
    body = await read_object(request)
    request.app[STATE].engine.free(
        unload_models=bool(body.get("unload_models")), free_memory=bool(body.get("free_memory"))
    )
    return web.Response()


@routes.get("/object_info")
async def get_object_info(request: web.Request) -> web.Response:
    """Describe every node class; file and model lists are read anew."""
    engine = request.app[STATE].engine
    return json_bytes(await asyncio.to_thread(lambda: encode(engine.object_info())))


@routes.get("/object_info/{node_class}")
async def get_object_info_of(request: web.Request) -> web.Response:
    """Describe one node class; ``{}`` when it is unknown."""
    engine = request.app[STATE].engine
    name = request.match_info["node_class"]
    return json_bytes(await asyncio.to_thread(lambda: encode(engine.object_info(name))))
