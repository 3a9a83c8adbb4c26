"""`easel doctor`: what this machine has and lacks, and what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from easel.cli.report import FAILED, print_json

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    status: Status
    found: str
    todo: str | None = None
    """What to do about it; None when nothing needs doing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line named."""

    comfyui: Path | None = None
    python: Path | None = None
    data_dir: Path | None = None
    store: str | None = None


Check = Callable[[Request], Iterator[Finding]]


def checks() -> Sequence[Check]:
    """Return every check, in the order in which the findings are shown."""
    from easel.cli.doctor import installation, machine

    return (
        machine.python,
        machine.environment,
        machine.clock,
        machine.gpu,
        installation.comfyui,
        machine.frontend,
        installation.settings,
        machine.ports,
    )


def doctor(request: Request, *, as_json: bool) -> int:
    """Print the findings; the exit code is 1 when one of them is a failure, else 0."""
    findings: list[Finding] = []
    for check in checks():
        for finding in _safely(check, request):
            findings.append(finding)
            if not as_json:
                _show(finding)
    failed = [finding for finding in findings if finding.status == "fail"]
    if as_json:
        print_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    elif failed:
        print(f"\n{len(failed)} of {len(findings)} need attention before Easel can run")
    else:
        print("\nnothing stands in the way of running Easel")
    return FAILED if failed else 0


def _safely(check: Check, request: Request) -> Iterator[Finding]:
    """Run a check; one that breaks is a finding too, and the others still run."""
    try:
        yield from check(request)
    except Exception as error:  # noqa: BLE001 - a doctor that collapses helps nobody
        name = getattr(check, "__name__", "check")
        yield Finding(name, "warn", f"could not be looked at: {type(error).__name__}: {error}")


def _show(finding: Finding) -> None:
    print(f"{finding.status:<5} {finding.name:<14} {finding.found}")
    if finding.todo:
        print(f"{'':20} -> {finding.todo}")
    sys.stdout.flush()
