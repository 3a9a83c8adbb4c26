"""The one function through which names from outside become paths."""

from __future__ import annotations

from pathlib import Path


class PathEscape(ValueError):
    """A name that would leave its folder."""


def inside(root: Path, *names: str) -> Path:
    """Join names from outside below ``root`` and return the path, links resolved.

    Absolute names, ``..``, NUL bytes and symbolic links that lead out are refused with `PathEscape`.
    """
    if any("\0" in name for name in names):
        raise PathEscape("a NUL byte in a file name")
    try:
        base = root.resolve()
        path = base.joinpath(*names).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # ValueError: lone surrogates
        raise PathEscape(str(error)) from error
    if path != base and base not in path.parents:
        raise PathEscape(f"{'/'.join(names)!r} leaves {root.name!r}")
    return path
