"""README's first command, run for real; the second is what runs this."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


async def test_make_run(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    if not (ROOT / ".venv" / ".run").is_file():
        pytest.skip("no .venv made by this Makefile: the tests were not started by make")
    output = tmp_path / "results"
    process = await asyncio.create_subprocess_exec(
        "make",
        "run",
        f"ARGS=--once --output {output} --data-dir {tmp_path / 'data'}",
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 55)
    assert process.returncode == 0, said.decode()
    assert [path.suffix for path in output.iterdir()] == [".png"]
    text = said.decode()
    assert f"Result: in {output}" in text
    assert "WebUI:  http://127.0.0.1:" in text
    assert "Vignette (ImageCompositeMasked)" in text
