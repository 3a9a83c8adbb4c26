"""`easel comfyui`: the ComfyUIs that services of this machine can run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from easel.cli.platform.options import Home, Json

comfyui = typer.Typer(
    help="Set up, list and choose the ComfyUI that services run.", rich_markup_mode=None
)


@comfyui.command()
def install(
    *,
    version: Annotated[
        str | None, typer.Argument(help="A release such as 0.3.64, a tag, branch or commit.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="FOLDER|URL", help="A ComfyUI that is there, or a git URL."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call it.")] = None,
    python: Annotated[
        Path | None, typer.Option(help="Its interpreter, or the one to make its environment with.")
    ] = None,
    torch: Annotated[
        str | None, typer.Option(metavar="BUILD", help="Build of torch: cpu, cu126 …")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> int:
    """Set up a ComfyUI with git and pip in an environment of its own, or register one that is there."""
    from easel.cli.platform.where import home_of
    from easel.services.installations import Installations
    from easel.services.installing import Order
    from easel.services.installing import install as set_up

    installations = Installations(home_of(home).absolute())
    order = Order(name=name, version=version, source=source, python=python, torch=torch)
    found = set_up(installations, order, lambda line: print(line, file=sys.stderr, flush=True))
    return _show(found.name, installations, as_json=as_json)


@comfyui.command("list")
def list_all(*, home: Home = None, as_json: Json = False) -> int:
    """List what is installed and which one is in use."""
    from easel.cli.platform.tables import table
    from easel.cli.platform.where import home_of
    from easel.cli.report import print_json
    from easel.services.installations import Installations

    installations = Installations(home_of(home).absolute())
    in_use = installations.in_use()
    found = installations.all()
    if as_json:
        print_json(
            {
                "installations": [
                    {
                        "name": one.name,
                        "version": one.version,
                        "folder": str(one.folder),
                        "python": str(one.python),
                        "ready": one.ready,
                        "error": one.error,
                        "in_use": one.name == in_use,
                    }
                    for one in found
                ]
            }
        )
        return 0
    rows = [
        (
            "*" if one.name == in_use else "",
            one.name,
            one.version or "-",
            "ready" if one.ready else "incomplete",
            one.folder,
        )
        for one in found
    ]
    columns = ("", "NAME", "VERSION", "STATE", "FOLDER")
    print(table(columns, rows) if rows else "none; `easel comfyui install` sets one up")
    return 0


@comfyui.command()
def use(*, name: Annotated[str, typer.Argument()], home: Home = None, as_json: Json = False) -> int:
    """Choose the ComfyUI that services run which name none."""
    from easel.cli.platform.where import home_of
    from easel.services.installations import Installations

    installations = Installations(home_of(home).absolute())
    installations.use(name)
    return _show(name, installations, as_json=as_json)


@comfyui.command()
def remove(*, name: Annotated[str, typer.Argument()], home: Home = None) -> int:
    """Forget an installation, and delete it if `easel comfyui install` has made it."""
    from easel.cli.platform.where import home_of
    from easel.services.installations import Installations
    from easel.services.installing import remove as forget

    found = forget(Installations(home_of(home).absolute()), name)
    print(f"{found.name}: removed")
    return 0


def _show(name: str, installations: object, *, as_json: bool) -> int:
    from easel.cli.report import print_json
    from easel.services.installations import Installations

    assert isinstance(installations, Installations)
    found = next(one for one in installations.all() if one.name == name)
    in_use = installations.in_use() == name
    if as_json:
        print_json(
            {
                "name": found.name,
                "version": found.version,
                "folder": str(found.folder),
                "python": str(found.python),
                "in_use": in_use,
            }
        )
        return 0
    words = "in use" if in_use else f"choose it with `easel comfyui use {name}`"
    print(
        f"{found.name}: ComfyUI {found.version or 'of unknown version'} in {found.folder}; {words}"
    )
    return 0
