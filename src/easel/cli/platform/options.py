"""Flags that the platform's commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, get_type_hints

import typer

if TYPE_CHECKING:
    from easel.cli.platform.where import Where

Home: TypeAlias = Annotated[
    Path | None,
    typer.Option("--home", help="The platform's folder (EASEL_HOME, else easel-data here)."),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Name: TypeAlias = Annotated[str, typer.Argument(metavar="SERVICE", help="The service's name.")]
Wait: TypeAlias = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Wait until the service is as wanted.")
]

_CONNECTION: dict[str, Any] = {
    "gateway": Annotated[
        str | None,
        typer.Option(
            "--gateway", metavar="URL", help="The gateway. Default: EASEL_GATEWAY, else --home's."
        ),
    ],
    "token": Annotated[
        str | None,
        typer.Option("--token", help="The admin token. Default: EASEL_TOKEN, else --home's."),
    ],
    "home": Home,
}


def connected(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the flags that say which platform it talks to; it gets them as ``where``."""

    @functools.wraps(command)
    def with_flags(
        *, gateway: str | None, token: str | None, home: Path | None, **flags: Any
    ) -> int:
        from easel.cli.platform.where import find

        where: Where = find(gateway, token, home)
        return command(where=where, **flags)

    # Typer reads a command's flags from its signature.
    hints = get_type_hints(command, include_extras=True, localns={"Where": object})
    kept = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "where"
    ]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in _CONNECTION.items()
    ]
    with_flags.__signature__ = inspect.Signature([*kept, *added])  # type: ignore[attr-defined]
    with_flags.__annotations__ = {**hints, **_CONNECTION}
    with_flags.__annotations__.pop("where", None)
    del with_flags.__wrapped__
    return with_flags
