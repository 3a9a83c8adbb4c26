"""Help, version, wrong calls; and that nothing heavy is imported for them."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from easel import __version__
from easel.cli import app as command_line
from easel.cli import main
from tests.cli.command import easel

HEAVY = {
    "aiohttp",
    "asyncio",
    "msgspec",
    "numpy",
    "PIL",
    "psutil",
    "pydantic",
    "pydantic_settings",
    "rich",
    "sqlalchemy",
    "uvloop",
}


async def imported_by(*arguments: str) -> set[str]:
    """Return the top-level modules that a call of the command imports."""
    code = (
        "import sys; from easel.cli import main; main(sys.argv[1:]); "
        "print(chr(10) + ' '.join({n.partition('.')[0] for n in sys.modules}))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    return set(out.decode().splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], []])
async def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    found = await imported_by(*arguments)
    assert "typer" in found
    assert not found & HEAVY


@pytest.mark.parametrize("command", ["run", "agent", "engine", "demo", "doctor", "version"])
async def test_help_of_a_command_imports_nothing_heavy(command: str) -> None:
    found = await imported_by(command, "--help")
    # Typer's own type conversion may use pydantic, by version.
    assert not found & (HEAVY - {"pydantic", "asyncio"})


async def test_help_lists_the_commands() -> None:
    for arguments in ([], ["--help"], ["-h"]):
        result = await easel(*arguments)
        assert result.code == 0
        for command in ("run", "agent", "engine", "demo", "doctor", "version"):
            assert f"\n  {command} " in result.out
        assert result.err == ""


async def test_version() -> None:
    for arguments in (["version"], ["--version"]):
        result = await easel(*arguments)
        assert (result.code, result.out, result.err) == (0, f"easel {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["paint"], "No such command 'paint'"),
        (["run"], "Missing argument"),
        (["run", "x.json", "--speed", "9"], "No such option: --speed"),
        (["run", "x.json", "--timeout", "soon"], "Invalid value for '--timeout'"),
        (["run", "x.json", "--timeout", "-1"], "--timeout"),
        (["engine", "--port", "99999"], "engine.port"),
    ],
)
def test_a_wrong_call_gets_two_lines(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, *rest = err.splitlines()
    assert first.startswith("error: ")
    assert says in first
    assert all(line.startswith("hint: ") for line in rest)
    assert "Traceback" not in err


async def test_a_pack_that_cannot_be_loaded(tmp_path: Path) -> None:
    result = await easel("engine", "--pack", "nix", "--port", "0", "--data-dir", str(tmp_path))
    assert result.code == 2
    assert result.err.startswith("error: node pack 'nix' cannot be loaded")


def test_a_wrong_call_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "x.json", "--json", "--speed"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == "usage_error"
    assert err == ""


def broken(*_: object) -> int:
    raise LookupError("no such luck")


def test_a_bug_is_an_error_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "_call", broken)
    monkeypatch.delenv("EASEL_DEBUG", raising=False)
    assert main(["version"]) == 1
    err = capsys.readouterr().err
    assert "error: internal error: LookupError: no such luck" in err
    assert "EASEL_DEBUG=1" in err
    monkeypatch.setenv("EASEL_DEBUG", "1")
    with pytest.raises(LookupError):
        main(["version"])


async def test_a_reader_that_leaves_is_no_crash() -> None:
    process = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m easel doctor --json | true",
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert err == b""
