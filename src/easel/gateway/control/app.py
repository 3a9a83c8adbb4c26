"""The control API as one application: ``/easel/v1``, its description, and nothing without the admin token."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Header
from pydantic import BaseModel

from easel import __version__
from easel.gateway.auth import check_admin
from easel.gateway.control.context import Control
from easel.gateway.control.model_routes import model_routes
from easel.gateway.control.problems import RESPONSES, add_handlers
from easel.gateway.control.service_routes import service_routes
from easel.gateway.control.task_routes import task_routes

PREFIX = "/easel/v1"


class Platform(BaseModel):
    """What answers here."""

    name: str = "easel"
    version: str


def control_app(control: Control, admin_token: str) -> FastAPI:
    """Return the application."""

    async def admin(authorization: Annotated[str, Header()] = "") -> None:
        """Let nobody else in. Raises Unauthorized."""
        check_admin(authorization.encode("latin-1", "replace"), admin_token)

    app = FastAPI(
        title="Easel control API",
        version=__version__,
        description="Services, instances and tasks of one platform. Every call carries the admin token.",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    add_handlers(app)
    router = APIRouter(prefix=PREFIX, dependencies=[Depends(admin)], responses=RESPONSES)

    @router.get("", tags=["platform"])
    async def platform() -> Platform:
        """Say what answers here."""
        return Platform(version=__version__)

    router.include_router(service_routes(control))
    router.include_router(model_routes(control))
    router.include_router(task_routes(control.tasks, control.services.store))
    app.include_router(router)
    return app
