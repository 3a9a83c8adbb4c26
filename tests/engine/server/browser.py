"""The unmodified official front end in headless Chromium: opened, given a workflow, watched to the picture."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright, expect

from easel.engine.server.files import write_atomically
from easel.engine.server.frontend import installed

CHROMIUM = Path("/usr/bin/chromium")

browser_marks = [
    pytest.mark.browser,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed"),
    pytest.mark.skipif(installed().pages is None, reason="comfyui-frontend-package is missing"),
]


@asynccontextmanager
async def opened(url: str, user: Path) -> AsyncIterator[Page]:
    """Open the front end at a URL; ``user`` is the engine's folder of settings."""
    # a visitor who has been here before: the first one is shown a tutorial over everything
    settings = user / "default" / "comfy.settings.json"
    await asyncio.to_thread(write_atomically, settings, b'{"Comfy.TutorialCompleted": true}')
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = await browser.new_page(viewport={"width": 1400, "height": 900})
            await page.goto(url)
            await page.wait_for_function("window.app?.graph != null", timeout=60_000)
            yield page
        finally:
            await browser.close()


async def queue_and_see(page: Page, workflow: dict[str, Any], width: int) -> list[str]:
    """Load a workflow, queue it, wait for its picture of this width at the SaveImage node; return the events heard."""
    await page.evaluate(
        """() => {
            window.seen = [];
            for (const kind of ['progress', 'executing', 'executed', 'execution_success'])
                window.app.api.addEventListener(kind, event => window.seen.push(kind));
        }"""
    )
    await page.evaluate(
        "workflow => window.app.loadApiJson(workflow, 'test')", json.loads(json.dumps(workflow))
    )
    assert await page.evaluate("window.app.graph._nodes.length") == len(workflow)
    await page.get_by_test_id("queue-button").get_by_role("button").first.click()
    await page.wait_for_function("window.seen.includes('execution_success')", timeout=30_000)
    # the SaveImage node holds the picture, loaded from /view
    await page.wait_for_function(
        """width => {
            const node = window.app.graph._nodes.find(n => n.comfyClass === 'SaveImage');
            return node.imgs?.[0]?.complete && node.imgs[0].naturalWidth === width;
        }""",
        arg=width,
        timeout=30_000,
    )
    await expect(page.get_by_test_id("queue-button")).to_be_visible()
    seen: list[str] = await page.evaluate("window.seen")
    return seen
