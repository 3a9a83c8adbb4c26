"""The rooms and which way imports point (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "easel"

MAY_IMPORT = {
    "errors": set(),
    "settings": {"errors"},
    "listening": {"errors"},
    "fc": {"errors"},
    "workflow": {"errors"},
    "storage": {"errors", "settings", "workflow"},
    "comfy": {"errors", "settings", "workflow", "storage"},
    "engine": {"errors", "settings", "listening", "workflow", "storage"},
    "link": {"errors", "workflow"},
    "agent": {"errors", "fc", "settings", "listening", "workflow", "storage", "comfy", "link"},
    "database": {"errors", "settings"},
    "tasks": {"errors", "settings", "workflow", "database", "link"},
    "services": {"errors", "settings", "workflow", "storage", "database"},
    "fleet": {
        "errors",
        "settings",
        "listening",
        "workflow",
        "storage",
        "comfy",
        "link",
        "database",
        "tasks",
        "services",
    },
    "gateway": {
        "errors",
        "fc",
        "settings",
        "listening",
        "workflow",
        "storage",
        "link",
        "database",
        "tasks",
        "services",
        "fleet",
    },
    "platform": {
        "errors",
        "settings",
        "listening",
        "workflow",
        "storage",
        "link",
        "database",
        "tasks",
        "services",
        "fleet",
        "gateway",
    },
    "cli": {
        "errors",
        "settings",
        "listening",
        "workflow",
        "storage",
        "comfy",
        "engine",
        "agent",
        "services",
        "platform",
    },
    "__main__": {"cli"},
}
"""Room → rooms it may import. A new room gets its line here and in docs/architecture.md."""

IMPURE = {"aiohttp", "asyncio", "os", "pathlib", "random", "shutil", "socket", "subprocess", "time"}
"""What `workflow/` stays away from: it does no I/O and reads no clock."""

LONGEST = 450
"""Lines in a module; beyond it a module is more than one idea."""


def modules() -> list[Path]:
    """Every module of the package."""
    return sorted(
        path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem != "__init__"
    )


def room(path: Path) -> str:
    """The room a module belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Every module name imported anywhere in a module, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            if node.module == "easel":
                yield from (f"easel.{name.name}" for name in node.names)
            else:
                yield node.module


def identity(path: Path) -> str:
    """The module's path below the package, as test id."""
    return str(path.relative_to(SOURCE))


@pytest.mark.parametrize("path", modules(), ids=identity)
def test_imports_point_downwards(path: Path) -> None:
    allowed = MAY_IMPORT[room(path)] | {room(path), "__version__"}
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "easel" and len(parts) > 1:
            assert parts[1] in allowed, f"{room(path)} may not import {name}"


@pytest.mark.parametrize("path", modules(), ids=identity)
def test_workflow_does_no_io(path: Path) -> None:
    if room(path) == "workflow":
        found = {name.split(".")[0] for name in imported(path)} & IMPURE
        assert not found


@pytest.mark.parametrize("path", modules(), ids=identity)
def test_modules_are_small_enough_to_hold_in_mind(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST
