"""Services: deploy, describe, change, and what is known of them."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Response

from easel.errors import ServiceNotFound
from easel.gateway.control.context import Control
from easel.gateway.control.invocation import endpoint_of, invoke
from easel.gateway.control.problems import RESPONSES
from easel.gateway.control.views import (
    Endpoint,
    EventList,
    EventView,
    InstanceList,
    InstanceLog,
    InstanceView,
    Invocation,
    Invoked,
    JoinToken,
    LinkRequest,
    LogList,
    NewToken,
    Put,
    RevisionList,
    RevisionView,
    Rollback,
    Scale,
    ServicePage,
    ServiceView,
    SignedLink,
    Token,
)
from easel.tasks.tasks import now_ms

DELETE_TIMEOUT = 120.0
"""Longest wait for a service to be gone, in seconds."""
LOOK = 1.0


def service_routes(control: Control) -> APIRouter:  # noqa: PLR0915 - one route after another
    """Return the routes."""
    router = APIRouter(prefix="/services", tags=["services"], responses=RESPONSES)
    services = control.services

    def endpoint(name: str) -> str:
        return f"{control.base_url()}/api/predict/{name}"

    async def view(name: str) -> ServiceView:
        return ServiceView.of(await services.describe(name), endpoint(name))

    @router.get("")
    async def list_services(
        after: Annotated[str | None, Query(description="`next` of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> ServicePage:
        """List services by name."""
        names = [one.name for one in await services.list() if after is None or one.name > after]
        page = [await view(name) for name in names[:limit]]
        return ServicePage(services=page, next=names[limit - 1] if len(names) > limit else None)

    @router.post("", status_code=201)
    async def deploy(body: Put) -> ServiceView:
        """Deploy a service: a scenario in a few words, or an EAS service JSON as it is."""
        spec, source, warnings = await control.specs.read(body)
        await services.deploy(spec, source, warnings)
        return await view(spec.name)

    @router.get("/{name}")
    async def describe(name: str) -> ServiceView:
        """Return everything known of a service but its tokens."""
        return await view(name)

    @router.put("/{name}")
    async def update(name: str, body: Put) -> ServiceView:
        """Give a service another specification: a whole EAS JSON, or what changes in a scenario."""
        current = await services.describe(name)
        spec, source, warnings = await control.specs.read(body, current=current.spec)
        await services.update(name, spec, source, warnings)
        return await view(name)

    @router.delete("/{name}", status_code=202)
    async def delete(name: str, response: Response, *, wait: bool = False) -> None:
        """Delete a service with its tasks; its storage stays. With ``wait`` answer 204 when it is gone."""
        await services.delete(name)
        if wait:
            await _gone(name)
            response.status_code = 204

    async def _gone(name: str) -> None:
        with control.tasks.bus.subscribe("fleet") as news:
            async with asyncio.timeout(DELETE_TIMEOUT):
                while True:
                    try:
                        await services.get(name)
                    except ServiceNotFound:
                        return
                    try:
                        await asyncio.wait_for(news.wait(), LOOK)
                    except TimeoutError:
                        continue
                    news.clear()

    @router.post("/{name}/scale")
    async def scale(name: str, body: Scale) -> ServiceView:
        """Change how many instances a service has."""
        await services.scale(name, body.instances)
        return await view(name)

    @router.post("/{name}/stop")
    async def stop(name: str) -> ServiceView:
        """Stop a service's instances; its definition and its waiting tasks stay."""
        await services.stop(name)
        return await view(name)

    @router.post("/{name}/start")
    async def start(name: str) -> ServiceView:
        """Start a stopped service, or try a failed one again."""
        await services.start(name)
        return await view(name)

    @router.post("/{name}/restart")
    async def restart(name: str) -> ServiceView:
        """Replace every instance of a service."""
        await services.restart(name)
        return await view(name)

    @router.post("/{name}/rollback")
    async def rollback(name: str, body: Rollback) -> ServiceView:
        """Go back to an earlier revision."""
        await services.rollback(name, body.revision)
        return await view(name)

    @router.get("/{name}/revisions")
    async def revisions(name: str) -> RevisionList:
        """List a service's revisions, oldest first."""
        found = await services.revisions(name)
        return RevisionList(
            revisions=[
                RevisionView(
                    number=one.number,
                    created=one.created,
                    failed=one.failed,
                    warnings=one.warnings,
                    spec=msgspec.to_builtins(msgspec.structs.replace(one.spec, token=None)),
                )
                for one in found
            ]
        )

    @router.get("/{name}/instances")
    async def instances(name: str) -> InstanceList:
        """List a service's instances, oldest first."""
        found = await services.describe(name)
        return InstanceList(instances=[InstanceView.of(one) for one in found.instances])

    @router.get("/{name}/events")
    async def events(
        name: str,
        after: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> EventList:
        """Return a service's latest events, oldest first."""
        found = await services.events(name, after=after, limit=limit)
        shown = [
            EventView(**{field: getattr(one, field) for field in EventView.model_fields})
            for one in found
        ]
        return EventList(events=shown)

    @router.get("/{name}/logs")
    async def logs(
        name: str,
        instance: str | None = None,
        lines: Annotated[int, Query(ge=1, le=10_000)] = 100,
        keyword: Annotated[str | None, Query(description="only lines with this text")] = None,
        previous: Annotated[bool, Query(description="of the run before the last restart")] = False,
    ) -> LogList:
        """Return what a service's instances printed last."""
        shown = []
        for one in (await services.describe(name)).instances:
            if instance not in (None, one.id):
                continue
            found = await control.runtime.logs(one.handle, lines=lines, previous=previous)
            kept = [line for line in found if keyword is None or keyword in line]
            shown.append(InstanceLog(instance=one.id, lines=kept))
        return LogList(instances=shown)

    @router.get("/{name}/endpoint")
    async def get_endpoint(name: str) -> Endpoint:
        """Return how a service is called: address, token, and calls to paste."""
        service = await services.get(name)
        spec = (await services.describe(name)).spec
        return endpoint_of(name, control.base_url(), service.token, webui=spec.webui)

    @router.post("/{name}/token")
    async def reset_token(name: str, body: NewToken) -> Token:
        """Give a service a new token; the old one is refused at once."""
        service = await services.reset_token(name, body.token)
        return Token(token=service.token)

    @router.post("/{name}/join-token")
    async def join_token(name: str) -> JoinToken:
        """Return what makes an agent an instance of a service."""
        token = await services.join_token(name)
        command = f"easel agent --join {control.base_url()} --token {token} -- python main.py"
        return JoinToken(token=token, command=command)

    @router.post("/{name}/signed-link")
    async def signed_link(name: str, body: LinkRequest) -> SignedLink:
        """Return a link to a service's WebUI that needs no login and expires."""
        await services.get(name)
        seconds = min(body.seconds or control.link_seconds, control.link_seconds)
        query = control.sign_link(name, seconds)
        return SignedLink(url=f"{endpoint(name)}/?{query}", expires=now_ms() + seconds * 1000)

    @router.post("/{name}/invoke")
    async def invoke_service(name: str, body: Invocation) -> Invoked:
        """Send one request to a service through its own door and return the answer (online debugging)."""
        service = await services.get(name)
        return await invoke(f"{control.local_url()}/api/predict/{name}", service.token, body)

    return router
