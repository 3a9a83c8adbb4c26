"""Every command in the documentation, run in order in a folder of its own against a real agent and built-in engine."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.docs.console import Block, blocks, missing, pages, steps
from tests.platforms import Platform, running_platform
from tests.servers import Server, running_agent

ROOT = Path(__file__).parents[2]
PAGES = [page for page in pages(ROOT) if "```console" in page.read_text(encoding="utf-8")]
DEFAULT = "127.0.0.1:9000"
"""Where the pages say the agent is; the tests' own listens elsewhere."""


def needs_platform(page: Path) -> bool:
    """Whether a page's commands are for a platform."""
    return "$ easel deploy" in page.read_text(encoding="utf-8")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    folder = tmp_path_factory.mktemp("docs-platform")
    async with running_platform(folder, fleet={"cpu_slots": 4}) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    folder = tmp_path_factory.mktemp("docs") / "agent"
    async with running_agent(folder, "--engine", "builtin", "--pack", "demo") as found:
        yield found


async def run(block: Block, folder: Path, url: str, env: dict[str, str]) -> None:
    """Run a block's commands and compare."""
    address = url.removeprefix("http://")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for step in block.steps:
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            step.command.replace(DEFAULT, address),
            cwd=folder,
            env={**os.environ, "PATH": path, **env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            out, _ = await asyncio.wait_for(process.communicate(), 90)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        printed = out.decode().replace(address, DEFAULT)
        said = f"line {block.line}: $ {step.command}\n{printed}"
        assert process.returncode == step.code, said
        line = missing(step.shown, printed)
        assert line is None, f"{said}\ndid not print (in this order): {line}"


@pytest.mark.timeout(300)
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
async def test_the_commands_of_a_page(
    page: Path, agent: Server, platform: Platform, tmp_path: Path
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    url, env = agent.url, {"EASEL_URL": agent.url}
    if needs_platform(page):
        url, env = platform.url, {"EASEL_HOME": str(platform.home)}
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.not_run is None:
            await run(block, tmp_path, url, env)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_not_run_says_why(page: Path) -> None:
    found = blocks(page.read_text(encoding="utf-8"))
    assert found
    for block in found:
        assert block.not_run is None or len(block.not_run.split()) >= 3, block


def test_blocks_are_found() -> None:
    page = """
<!-- exit: 2 -->
```console
$ one \\
  more
out ... put
$ two
```
<!-- not run: it needs a GPU -->
```console
$ three
```
```sh
four
```
"""
    first, second = blocks(page)
    assert [(step.command, step.shown, step.code) for step in first.steps] == [
        ("one \\\n  more", ["out ... put"], 0),
        ("two", [], 2),
    ]
    assert (first.line, first.not_run) == (3, None)
    assert second.not_run == "it needs a GPU"
    with pytest.raises(ValueError, match="begins with a command"):
        steps("output")


@pytest.mark.parametrize(
    ("shown", "absent"),
    [
        (["a", "c"], None),
        (["c", "a"], "a"),
        (["...", "b ... d"], None),
        (["b … d", "..."], None),
        (["b"], "b"),
        (["a", "a"], "a"),
        ([], None),
    ],
)
def test_output_is_compared_in_order(shown: list[str], absent: str | None) -> None:
    assert missing(shown, "a\nb x d\nc") == absent
