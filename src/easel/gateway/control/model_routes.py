"""Models and nodes of a service: what there is, what a workflow needs and misses, and having new ones seen."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import quote

import aiohttp
from fastapi import APIRouter, Query

from easel.errors import NoHealthyUpstream, UpstreamFailed
from easel.gateway.control.context import Control, Reachable
from easel.gateway.control.problems import RESPONSES
from easel.gateway.control.views import (
    Checked,
    CheckRequest,
    Missing,
    ModelFolder,
    ModelList,
    NodeList,
    NodeView,
    Said,
)
from easel.workflow.needs import loaders, missing
from easel.workflow.parse import parse_prompt
from easel.workflow.types import ObjectInfo

ENGINE_TIMEOUT = aiohttp.ClientTimeout(total=30)


def model_routes(control: Control) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/services/{name}", tags=["models and nodes"], responses=RESPONSES)

    async def ready(name: str) -> Sequence[Reachable]:
        """Return a service's ready instances, at least one. Raises ServiceNotFound and NoHealthyUpstream."""
        await control.services.get(name)
        found = control.members.ready(name)
        if not found:
            raise NoHealthyUpstream(
                "no healthy upstream", hint=f"no instance of {name} is ready: easel describe {name}"
            )
        return found

    async def object_info(name: str) -> ObjectInfo:
        """Return what the service's nodes are, as new as can be. Raises NoHealthyUpstream."""
        await ready(name)
        control.knowledge.forget(name)
        info = await control.knowledge.object_info(name)
        if info is None:
            raise NoHealthyUpstream("no healthy upstream", hint="its engine does not answer")
        return info

    @router.get("/models")
    async def models(
        name: str,
        folder: Annotated[str | None, Query(description="only this folder")] = None,
    ) -> ModelList:
        """List the models by folder, and which loaders read each folder."""
        info = await object_info(name)
        engine = (await ready(name))[0].upstream
        async with aiohttp.ClientSession(timeout=ENGINE_TIMEOUT) as http:
            folders = [folder] if folder is not None else await _listed(http, f"{engine}/models")
            files = await asyncio.gather(
                *(_listed(http, f"{engine}/models/{quote(one, safe='')}") for one in folders)
            )
        readers = loaders(info)
        shown = [
            ModelFolder(folder=one, files=sorted(found), loaders=sorted(readers.get(one, ())))
            for one, found in zip(folders, files, strict=True)
        ]
        return ModelList(folders=sorted(shown, key=lambda one: one.folder))

    @router.get("/nodes")
    async def nodes(
        name: str,
        search: Annotated[str | None, Query(description="only names with this text")] = None,
    ) -> NodeList:
        """List the node classes, by name."""
        info = await object_info(name)
        shown = []
        for class_type, node in sorted(info.items()):
            display = str(node.get("display_name") or class_type)
            if search is not None and search.lower() not in f"{class_type} {display}".lower():
                continue
            shown.append(
                NodeView(
                    class_type=class_type,
                    display_name=display,
                    category=str(node.get("category", "")),
                    description=str(node.get("description", "")),
                    output_node=bool(node.get("output_node")),
                    python_module=str(node.get("python_module", "")),
                )
            )
        return NodeList(nodes=shown)

    @router.post("/check")
    async def check(name: str, body: CheckRequest) -> Checked:
        """Say which nodes and models a workflow needs and the service lacks, before it runs."""
        info = await object_info(name)
        parsed = await asyncio.to_thread(parse_prompt, body.workflow)
        found = missing(parsed.prompt, info)
        return Checked(
            missing=[
                Missing(**{field: getattr(one, field) for field in Missing.model_fields})
                for one in found
            ]
        )

    @router.post("/load-models")
    async def load_models(name: str) -> Said:
        """Have new model files seen, without a restart."""
        members = await ready(name)
        for member in members:
            await member.refresh(restart=False, reason="new models")
        control.knowledge.forget(name)
        return Said(message=f"{len(members)} instances look at their model folders anew")

    @router.post("/restart-process")
    async def restart_process(name: str) -> Said:
        """Restart ComfyUI inside the running instances, for new custom nodes; what runs on them runs again."""
        await control.services.get(name)
        members = control.members.of(name)
        if not members:
            raise NoHealthyUpstream("no healthy upstream", hint="no instance is connected")
        for member in members:
            await member.refresh(restart=True, reason="was restarted by its operator")
        control.knowledge.forget(name)
        return Said(message=f"{len(members)} instances restart their ComfyUI")

    return router


async def _listed(http: aiohttp.ClientSession, url: str) -> list[str]:
    """Ask an engine for a list. Raises UpstreamFailed."""
    try:
        async with http.get(url) as answer:
            if answer.status == 404:
                return []
            found = await answer.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise UpstreamFailed(f"the engine did not list its models: {error}") from error
    return [str(one) for one in found] if isinstance(found, list) else []
