"""How a benchmark says what it found."""

from __future__ import annotations


def say(name: str, value: str, target: str, reached: bool) -> bool:
    """Print one line of the report."""
    print(f"{name:<52} {value:>22}   {target:<18} {'reached' if reached else 'MISSED'}", flush=True)
    return reached
