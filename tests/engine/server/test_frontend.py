"""The unmodified official front end in headless Chromium, served by the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright, expect

from easel.engine.serve import RunningEngine
from easel.engine.server.files import write_atomically
from easel.engine.server.frontend import installed
from tests.engine.engines import PROBES, engine

CHROMIUM = Path("/usr/bin/chromium")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed"),
    pytest.mark.skipif(installed().pages is None, reason="comfyui-frontend-package is missing"),
]

WORKFLOW: dict[str, Any] = {
    "1": {"class_type": "ProbeSleep", "inputs": {"steps": 4, "seconds": 0.1, "salt": 1}},
    "2": {
        "class_type": "EmptyImage",
        "inputs": {"width": 96, "height": 64, "batch_size": 1, "color": 0xCC5522},
    },
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "page"}},
    "4": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningEngine]:
    async with engine(tmp_path / "base", PROBES, "pretend") as running:
        yield running


@pytest.fixture
async def page(running: RunningEngine) -> AsyncIterator[Page]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        # a visitor who has been here before: the first one is shown a tutorial over everything
        settings = running.state.folders.user / "default" / "comfy.settings.json"
        await asyncio.to_thread(write_atomically, settings, b'{"Comfy.TutorialCompleted": true}')
        page = await browser.new_page(viewport={"width": 1400, "height": 900})
        await page.goto(running.url)
        await page.wait_for_function("window.app?.graph != null", timeout=60_000)
        yield page
        await browser.close()


async def test_the_front_end_queues_a_workflow_and_shows_the_picture(
    running: RunningEngine, page: Page, tmp_path: Path
) -> None:
    await page.evaluate(
        """() => {
            window.seen = [];
            for (const kind of ['progress', 'executing', 'executed', 'execution_success'])
                window.app.api.addEventListener(kind, event => window.seen.push(kind));
        }"""
    )
    await page.evaluate(
        "workflow => window.app.loadApiJson(workflow, 'test')", json.loads(json.dumps(WORKFLOW))
    )
    assert await page.evaluate("window.app.graph._nodes.length") == 4
    await page.get_by_test_id("queue-button").get_by_role("button").first.click()
    await page.wait_for_function("window.seen.includes('execution_success')", timeout=30_000)
    seen = await page.evaluate("window.seen")
    assert seen.count("progress") == 4
    assert {"executing", "executed"} <= set(seen)
    # the SaveImage node holds the picture, loaded from /view
    await page.wait_for_function(
        """() => {
            const node = window.app.graph._nodes.find(n => n.comfyClass === 'SaveImage');
            return node.imgs?.[0]?.complete && node.imgs[0].naturalWidth === 96;
        }""",
        timeout=30_000,
    )
    await page.screenshot(path=tmp_path / "screenshot.png")
    saved = list((running.state.folders.output).glob("page_*.png"))
    assert len(saved) == 1
    await expect(page.get_by_test_id("queue-button")).to_be_visible()
