"""The unmodified official front end in headless Chromium, served by the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.engine.engines import PROBES, engine
from tests.engine.server.browser import browser_marks, opened, queue_and_see

pytestmark = browser_marks

WORKFLOW: dict[str, Any] = {
    "1": {"class_type": "ProbeSleep", "inputs": {"steps": 4, "seconds": 0.1, "salt": 1}},
    "2": {
        "class_type": "EmptyImage",
        "inputs": {"width": 96, "height": 64, "batch_size": 1, "color": 0xCC5522},
    },
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "page"}},
    "4": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


async def test_the_front_end_queues_a_workflow_and_shows_the_picture(tmp_path: Path) -> None:
    async with (
        engine(tmp_path / "base", PROBES, "pretend") as running,
        opened(running.url, running.state.folders.user) as page,
    ):
        seen = await queue_and_see(page, WORKFLOW, 96)
        assert seen.count("progress") == 4
        assert {"executing", "executed"} <= set(seen)
        await page.screenshot(path=tmp_path / "screenshot.png")
        saved = list(running.state.folders.output.glob("page_*.png"))
        assert len(saved) == 1
