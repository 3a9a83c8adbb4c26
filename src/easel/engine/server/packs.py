"""What node packs bring for the front end: scripts, translations, workflow templates.

They lie in ``custom_nodes/<pack>/`` (``web``, ``locales``, ``example_workflows``), as ComfyUI's packs have them. The engine
runs no Python from there: nodes come from registries.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiohttp import web

from easel.engine.server.bodies import json_response

log = logging.getLogger(__name__)

routes = web.RouteTableDef()

TEMPLATE_FOLDERS = ("example_workflows", "example", "examples", "workflow", "workflows")
EXTRA_LOCALES = ("nodeDefs", "commands", "settings")


@dataclass(frozen=True, slots=True)
class Pack:
    """A node pack's folder."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def web(self) -> Path:
        """Where its scripts for the front end are."""
        return self.path / "web"

    def template_folders(self) -> list[Path]:
        """Return its folders of example workflows."""
        return [folder for name in TEMPLATE_FOLDERS if (folder := self.path / name).is_dir()]


@dataclass(frozen=True, slots=True)
class Packs:
    """The packs found at start, and the front end's own folder."""

    packs: tuple[Pack, ...]
    frontend: Path | None

    def extensions(self) -> list[str]:
        """List the addresses of all extension scripts."""
        addresses: list[str] = []
        if self.frontend is not None:
            scripts = sorted((self.frontend / "extensions").rglob("*.js"))
            addresses += ["/" + path.relative_to(self.frontend).as_posix() for path in scripts]
        for pack in self.packs:
            addresses += [
                f"/extensions/{quote(pack.name)}/{path.relative_to(pack.web).as_posix()}"
                for path in sorted(pack.web.rglob("*.js"))
            ]
        return addresses

    def templates(self) -> dict[str, list[str]]:
        """Return the names of each pack's example workflows; packs without any are left out."""
        found: dict[str, list[str]] = {}
        for pack in self.packs:
            names = [
                path.stem for folder in pack.template_folders() for path in folder.glob("*.json")
            ]
            if names:
                found[pack.name] = sorted(names)
        return found

    def translations(self) -> dict[str, Any]:
        """Return all packs' translations by language, later packs over earlier ones."""
        merged: dict[str, Any] = {}
        for pack in self.packs:
            for language in sorted(path for path in (pack.path / "locales").glob("*/")):
                found = _load(language / "main.json")
                for extra in EXTRA_LOCALES:
                    if content := _load(language / f"{extra}.json"):
                        found[extra] = content
                merged[language.name] = _merge(merged.get(language.name, {}), found)
        return {language: found for language, found in merged.items() if found}


def find_packs(custom_nodes: Path, frontend: Path | None) -> Packs:
    """Look for packs; hidden and disabled folders are none."""
    found = sorted(
        path
        for path in custom_nodes.glob("*/")
        if not path.name.startswith((".", "__")) and not path.name.endswith(".disabled")
    )
    return Packs(tuple(Pack(path) for path in found), frontend)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        log.warning("%s is not JSON", path.name)
        return {}
    return content if isinstance(content, dict) else {}


def _merge(base: Any, over: Any) -> Any:
    """Merge JSON values: objects by key, lists one after the other, else the later one."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: _merge(base.get(key), value) for key, value in over.items()}}
    if isinstance(base, list) and isinstance(over, list):
        return base + over
    return over


PACKS: web.AppKey[Packs] = web.AppKey("packs", Packs)


@routes.get("/extensions")
async def get_extensions(request: web.Request) -> web.Response:
    """List the scripts the front end loads."""
    return json_response(await asyncio.to_thread(request.app[PACKS].extensions))


@routes.get("/i18n")
async def get_translations(request: web.Request) -> web.Response:
    """Return the packs' translations."""
    return json_response(await asyncio.to_thread(request.app[PACKS].translations))


@routes.get("/workflow_templates")
async def get_templates(request: web.Request) -> web.Response:
    """List the packs' example workflows."""
    return json_response(await asyncio.to_thread(request.app[PACKS].templates))
