"""The aiohttp application: every route plain and under ``/api``, the rules around them."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web
from aiohttp.typedefs import Middleware

from easel.engine.server import (
    internal,
    model_routes,
    origin,
    packs,
    prompts,
    system,
    upload,
    user_routes,
    userdata,
    view,
    websocket,
)
from easel.engine.server.errors import errors_as_json
from easel.engine.server.frontend import FrontendFiles, installed, static_routes
from easel.engine.server.state import STATE, ServerState

API_ROUTES = (websocket, prompts, system, view, upload, model_routes, user_routes, userdata, packs)
"""Modules whose routes exist plain and under ``/api``."""


def make_app(state: ServerState, frontend: FrontendFiles | None = None) -> web.Application:
    """Build the application. Reads folders: call it in a thread.

    ``frontend`` names where the front end's files are; by default it is looked for among the installed packages.
    """
    files = installed() if frontend is None else frontend
    cors = state.settings.cors_origin
    middlewares: list[Middleware] = [origin.answer_options, errors_as_json]
    if cors is None:
        middlewares.insert(0, origin.origin_rule(origin.loopback_names()))
    app = web.Application(client_max_size=state.settings.max_upload_bytes, middlewares=middlewares)
    app[STATE] = state
    app[packs.PACKS] = packs.find_packs(state.folders.base / "custom_nodes", files.pages)
    if cors is not None:
        app.on_response_prepare.append(origin.allow_origin(cors))
    app.on_response_prepare.append(origin.cache_headers)
    for module in API_ROUTES:
        app.add_routes(under_api(module.routes))
        app.add_routes(module.routes)
    app.add_routes(internal.routes)
    app.add_routes(static_routes(files, app[packs.PACKS]))
    app.on_shutdown.append(close_sockets)
    return app


def under_api(routes: Iterable[web.AbstractRouteDef]) -> list[web.AbstractRouteDef]:
    """Return the same routes below ``/api``."""
    return [
        web.route(route.method, "/api" + route.path, route.handler, **route.kwargs)
        for route in routes
        if isinstance(route, web.RouteDef)
    ]


async def close_sockets(app: web.Application) -> None:
    """End every socket with "going away"."""
    await app[STATE].sockets.close()
