"""`easel up`: serve the platform until a signal."""

from __future__ import annotations

from pathlib import Path

from easel.cli.platform.where import home_of
from easel.cli.servers import given, run_server
from easel.settings import load


def up(*, home: Path | None, host: str | None, port: int | None, database: str | None) -> int:
    """Serve the platform. Raises ConfigurationError."""
    settings = load(
        **given(home=home_of(home).absolute(), database=database),
        gateway=given(host=host, port=port),
    )
    from easel.platform.serve import serve

    run_server(serve(settings))
    return 0
