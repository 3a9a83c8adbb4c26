"""What the proxy tells ComfyUI of where a request comes from."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from easel.agent.command import EngineChoice
from easel.agent.serve import running_agent
from easel.settings import AgentSettings
from tests.agent.agents import QUICK
from tests.agent.web import serve

CROSS_SITE = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}


async def said(request: web.Request) -> web.StreamResponse:
    """Answer with the request's headers, as a ComfyUI that refuses other sites' requests sees them."""
    return web.json_response(dict(request.headers))


@pytest.mark.parametrize(
    ("headers", "passed"),
    [
        (
            CROSS_SITE,
            "cross-site",
        ),  # an <img> or a form of another site: no Origin that was checked
        ({**CROSS_SITE, "Origin": "http://allowed.example"}, None),
        ({"Sec-Fetch-Site": "same-origin"}, "same-origin"),
        ({}, None),
    ],
)
async def test_where_a_request_comes_from(
    tmp_path: Path, headers: dict[str, str], passed: str | None
) -> None:
    settings = AgentSettings(
        port=0, data_dir=tmp_path, supervision=QUICK, cors_origins=("http://allowed.example",)
    )
    async with (
        serve(said) as upstream,
        running_agent(settings, EngineChoice(upstream, None)) as agent,
        aiohttp.ClientSession(agent.url, timeout=aiohttp.ClientTimeout(total=10)) as http,
        http.get("/manager/reboot", headers=headers) as answer,
    ):
        assert answer.status == 200
        seen = await answer.json()
        assert seen.get("Sec-Fetch-Site") == passed
        assert "Origin" not in seen
        assert seen["Host"] in upstream
