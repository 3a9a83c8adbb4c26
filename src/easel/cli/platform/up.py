"""`easel up`: serve the platform until a signal."""

from __future__ import annotations

from pathlib import Path

from easel.cli.platform.where import home_of
from easel.cli.servers import end_with_parent, given, run_server
from easel.settings import load


def up(
    *,
    home: Path | None,
    host: str | None,
    port: int | None,
    database: str | None,
    keep_instances: bool,
    with_parent: bool,
) -> int:
    """Serve the platform. Raises ConfigurationError."""
    settings = load(
        **given(home=home_of(home).absolute(), database=database),
        gateway=given(host=host, port=port),
    )
    from easel.platform.serve import serve

    if with_parent:
        end_with_parent()
    run_server(serve(settings, keep_instances=keep_instances))
    return 0
