"""ComfyUI's pages under a service: links without a login, cookies that other pages cannot use, the front end itself."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from playwright.async_api import async_playwright

from easel.engine.server.files import write_atomically
from easel.errors import BadRequest, ServiceNotFound
from easel.gateway.links import PARAMETER, Links, split_query
from tests.agent.web import serve
from tests.engine.engines import engine
from tests.engine.server.browser import CHROMIUM, browser_marks, queue_and_see
from tests.gateway.gateways import PAINT, TOKEN, Gateway, gateway, spec_of
from tests.gateway.test_proxy import echo
from tests.servers import free_port
from tests.waiting import until

HTML = {"Accept": "text/html,application/xhtml+xml"}
HOUR = 3600


async def opened(served: Gateway, query: str, path: str = "/", **headers: str) -> Any:
    """Open a link as a browser does; returns status, where it leads, the cookie."""
    url = f"{served.url}{path}?{query}"
    async with served.http.get(url, headers={**HTML, **headers}, allow_redirects=False) as answer:
        cookie = answer.headers.get("Set-Cookie", "")
        return answer.status, answer.headers.get("Location"), cookie


async def cookie_of(served: Gateway, seconds: int = HOUR) -> str:
    _, _, cookie = await opened(served, served.state.sign_link(PAINT, seconds))
    return str(cookie.partition(";")[0])


async def test_a_link_becomes_a_cookie_and_a_clean_address(served: Gateway) -> None:
    query = served.state.sign_link(PAINT, HOUR)
    status, location, cookie = await opened(served, query)
    assert (status, location) == (303, "./")
    attributes = {part.strip() for part in cookie.split(";")[1:]}
    assert attributes == {
        f"Path=/api/predict/{PAINT}/",
        "Max-Age=3600",
        "HttpOnly",
        "SameSite=Lax",
    }
    _, location, _ = await opened(served, f"a=1&{query}&b=%26", "/x/page")
    assert location == "./page?a=1&b=%26"
    async with serve(echo) as url:
        served.stands(url)
        headers = {"Cookie": f"x=1; {cookie.partition(';')[0]}"}
        async with served.http.get(served.url + "/api/object_info", headers=headers) as answer:
            told = await answer.json()
            assert dict(told["headers"])["Cookie"] == "x=1"
        async with served.http.ws_connect(
            served.url + "/api/run/ws", headers={"Authorization": TOKEN}
        ):
            pass
        for path in ("/api/run", "/api/status?id=1", "/api/outputs/a/b"):
            async with served.http.get(served.url + path, headers=headers) as answer:
                assert answer.status == 401


async def test_links_end(served: Gateway) -> None:
    query = served.state.sign_link(PAINT, HOUR)
    cookie = await cookie_of(served)
    async with serve(echo) as url:
        served.stands(url)

        async def status() -> int:
            headers = {"Cookie": cookie}
            async with served.http.get(served.url + "/x", headers=headers) as answer:
                return int(answer.status)

        assert await status() == 200
        served.now[0] += HOUR * 1000 - 1
        assert await status() == 200
        served.now[0] += 1
        assert await status() == 401
        assert (await opened(served, query))[0] == 401
        cookie = await cookie_of(served)
        assert await status() == 200
        await served.services.reset_token(PAINT)
        assert await status() == 401


async def test_links_last_no_longer_than_the_operator_says(tmp_path: Path) -> None:
    async with gateway(tmp_path, link_seconds=60) as served:
        _, _, cookie = await opened(served, served.state.sign_link(PAINT, 9007199254740991))
        assert "Max-Age=60;" in cookie


async def test_a_link_is_one_services(served: Gateway) -> None:
    await served.services.deploy(spec_of("other", token="its own"), "{}", [])
    await served.services.deploy(spec_of("twin"), "{}", [])
    await served.services.deploy(spec_of("blind", webui=False), "{}", [])
    async with served.http.get(f"{served.origin}/api/predict/blind/x", headers=HTML):
        pass
    cookie = await cookie_of(served)
    proof = cookie.partition("=")[2]
    for name in ("other", "twin", "blind", "none"):
        url = f"{served.origin}/api/predict/{name}"
        async with served.http.get(f"{url}/?{PARAMETER}={proof}", headers=HTML) as answer:
            assert answer.status == 401
        headers = {"Cookie": f"easel_link_{name}={proof}"}
        async with served.http.get(f"{url}/x", headers=headers) as answer:
            assert answer.status == 401
    with pytest.raises(BadRequest):
        served.state.sign_link("blind", 60)
    with pytest.raises(ServiceNotFound):
        served.state.sign_link("none", 60)


@pytest.mark.parametrize(
    ("headers", "path", "let_in"),
    [
        ({}, "/x", True),
        ({"Sec-Fetch-Site": "same-origin"}, "/x", True),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, "/x", True),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, "/", True),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, "/manager/reboot", False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, "/", False),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, "/x", False),
        ({"Origin": "http://evil.example"}, "/x", False),
        ({"Origin": "null"}, "/x", False),
        ({"Origin": "own"}, "/x", True),
    ],
)
async def test_another_sites_page_cannot_use_the_cookie(
    served: Gateway, headers: dict[str, str], path: str, let_in: bool
) -> None:
    headers = {k: served.origin if v == "own" else v for k, v in headers.items()}
    headers["Cookie"] = await cookie_of(served)
    async with serve(echo) as url:
        served.stands(url)
        async with served.http.get(served.url + path, headers=headers) as answer:
            assert answer.status == (200 if let_in else 401)
        # The token, which a page cannot have, is another matter.
        async with served.get(path, headers=headers) as answer:
            assert answer.status == 200


async def test_another_sites_page_cannot_open_a_socket(served: Gateway) -> None:
    async def handler(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await ws.send_str("hello")
        return ws

    cookie = {"Cookie": await cookie_of(served)}
    async with serve(handler) as url:
        served.stands(url)
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await served.http.ws_connect(
                served.url + "/ws", headers={**cookie, "Origin": "http://evil.example"}
            )
        async with served.http.ws_connect(
            served.url + "/ws", headers={**cookie, "Origin": served.origin}
        ) as ws:
            assert await ws.receive_str(timeout=10) == "hello"


async def test_secure_cookies_behind_https(tmp_path: Path) -> None:
    async with gateway(tmp_path, public_url="https://paint.example/easel") as served:
        _, _, cookie = await opened(served, served.state.sign_link(PAINT, HOUR))
        assert "; Secure" in cookie


async def test_browsers_are_sent_to_the_slash(served: Gateway) -> None:
    for path, place in (
        (PAINT, f"./{PAINT}/"),
        (f"{PAINT}?a=b&c", f"./{PAINT}/?a=b&c"),
        ("https:evil.example", "./https:evil.example/"),
    ):
        url = f"{served.origin}/api/predict/{path}"
        async with served.http.get(url, headers=HTML, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, place)


async def test_people_see_pages_and_no_referrer(served: Gateway) -> None:
    async with served.http.get(served.url + "/", headers=HTML) as answer:
        assert (answer.status, answer.content_type) == (401, "text/html")
    async with served.get("/", headers=HTML) as answer:
        assert (answer.status, answer.content_type) == (503, "text/html")
        assert 'http-equiv="refresh"' in await answer.text()


async def test_what_the_front_end_asks_of_the_root(served: Gateway) -> None:
    for path, status in (
        ("/assets/favicon.ico", 200),
        ("/assets/images/comfy-logo-single.svg", 200),
        ("/assets/images/none.png", 404),
        ("/assets/images/", 404),
        ("/assets/images/..%2f..%2f..%2f__init__.py", 404),
        ("/assets/images/%00", 404),
    ):
        async with served.http.get(served.origin + path) as answer:
            assert answer.status == status, path


texts = st.text(max_size=30)


@given(texts, texts, st.binary(max_size=20), st.integers(1, 10**9))
def test_only_our_own_links_count(service: str, other: str, token: bytes, seconds: int) -> None:
    links = Links("secret", clock=lambda: 0)
    proof = links.sign(service, token, seconds)
    assert links.seconds_left(proof, service, token) == seconds
    if other != service:
        assert links.seconds_left(proof, other, token) == 0
    assert links.seconds_left(proof, service, token + b"x") == 0
    assert Links("another", clock=lambda: 0).seconds_left(proof, service, token) == 0
    assert Links("secret", clock=lambda: seconds * 1000).seconds_left(proof, service, token) == 0
    assert links.seconds_left(other, service, token) == 0


@given(st.binary(max_size=40))
def test_any_query_may_come(query: bytes) -> None:
    split_query(query)
    split_query(b"easel_link=" + query)


# The official front end.


@contextlib.asynccontextmanager
async def behind_a_link(served: Gateway, user: Path, address: str) -> Any:
    """Open an address in a browser of a visitor who has been here before."""
    settings = user / "default" / "comfy.settings.json"
    await asyncio.to_thread(write_atomically, settings, b'{"Comfy.TutorialCompleted": true}')
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = await browser.new_page(viewport={"width": 1400, "height": 900})
            missing: list[str] = []
            page.on(
                "response",
                lambda answer: (
                    missing.append(f"{answer.status} {answer.url}")
                    if answer.status >= 400
                    else None
                ),
            )
            await page.goto(address)
            await page.wait_for_function("window.app?.graph != null", timeout=60_000)
            yield page, missing
        finally:
            await browser.close()


def drawing(width: int) -> dict[str, Any]:
    """A workflow that reports steps and draws a picture."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    return {
        "1": node("EmptyImage", width=width, height=8, batch_size=1, color=width),
        "2": node("SaveImage", images=["1", 0], filename_prefix="test"),
        "3": node("EaselSteps", steps=4, seconds=0.1, preview=True, salt=width),
    }


@pytest.mark.parametrize("own_port", [False, True])
class TestFrontEnd:
    """The unmodified official front end in headless Chromium."""

    pytestmark = browser_marks

    async def test_it_loads_from_a_link_and_runs_a_prompt(
        self, served: Gateway, tmp_path: Path, own_port: bool
    ) -> None:
        async with engine(tmp_path / "engine", "demo", "pretend") as running:
            served.stands(running.url)
            query = served.state.sign_link(PAINT, HOUR)
            address = f"{served.url}?{query}"
            if own_port:
                port = free_port()
                await served.change(web_port=port)
                address = f"http://127.0.0.1:{port}/?{query}"

                async def listens() -> bool:
                    return port in served.running.front.ports

                await until(listens, timeout=10)
            async with behind_a_link(served, tmp_path / "engine" / "user", address) as found:
                page, missing = found
                base = await page.evaluate("window.app.api.api_base")
                assert base == ("" if own_port else f"/api/predict/{PAINT}")
                assert PARAMETER not in page.url
                seen = await queue_and_see(page, drawing(72), 72)
                assert seen.count("progress") == 4
                assert {"executing", "executed"} <= set(seen)
            assert not [one for one in missing if one.startswith(("401", "403", "5"))]
            assert not [one for one in missing if "/assets/" in one]
