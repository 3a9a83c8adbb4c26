"""The ``easel`` command. Nothing heavy is imported until a command needs it: ``easel --help`` is instant."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` by default) and return the exit code."""
    from easel.cli.app import run_command

    return run_command(arguments)
