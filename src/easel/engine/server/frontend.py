"""The official front end, its templates and its node documentation, served from where pip put them.

They are packages of their own (the ``frontend`` extra; GPL-3.0, never copied into Easel). Without them ``/`` says how to get them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from aiohttp import web

from easel.engine.server.errors import Handler
from easel.engine.server.packs import Packs

NO_CACHE = {"Cache-Control": "no-cache", "Pragma": "no-cache", "Expires": "0"}

INSTALL_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Easel built-in engine</title></head>
<body style="font-family: sans-serif; max-width: 40em; margin: 4em auto">
<h1>Easel's built-in engine is running</h1>
<p>It answers ComfyUI's API here. The web interface is a package of its own and is not installed. To add it:</p>
<pre>pip install 'easel-comfy[frontend]'</pre>
<p>then start the engine again.</p>
</body></html>
"""


@dataclass(frozen=True, slots=True)
class FrontendFiles:
    """Where the three packages keep their files; None for one that is not installed."""

    pages: Path | None
    templates: Path | None
    docs: Path | None


def installed() -> FrontendFiles:
    """Look for the packages."""
    return FrontendFiles(
        pages=_within("comfyui_frontend_package", "static"),
        templates=_within("comfyui_workflow_templates", "templates"),
        docs=_within("comfyui_embedded_docs", "docs"),
    )


def _within(package: str, folder: str) -> Path | None:
    spec = find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(location) / folder
        if path.is_dir():
            return path
    return None


def static_routes(files: FrontendFiles, packs: Packs) -> list[web.AbstractRouteDef]:
    """Return the start page and the static trees, which have no ``/api`` alias."""
    found: list[web.AbstractRouteDef] = [web.get("/", _start_page(files.pages))]
    for pack in packs.packs:
        if pack.web.is_dir():
            found.append(web.static(f"/extensions/{pack.name}", pack.web))
        found += [
            web.static(f"/api/workflow_templates/{pack.name}", folder)
            for folder in pack.template_folders()
        ]
    if files.templates is not None:
        found.append(web.static("/templates", files.templates))
    if files.docs is not None:
        found.append(web.static("/docs", files.docs))
    if files.pages is not None:
        found.append(web.static("/", files.pages))
    return found


def _start_page(pages: Path | None) -> Handler:
    async def get_root(_: web.Request) -> web.StreamResponse:
        """Return the front end's page, never from a cache, or how to install it."""
        if pages is None:
            return web.Response(text=INSTALL_PAGE, content_type="text/html", headers=NO_CACHE)
        return web.FileResponse(pages / "index.html", headers=NO_CACHE)

    return get_root
