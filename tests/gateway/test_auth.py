"""Who is let in, and what those learn who are not."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web

from easel.gateway.signature import sign
from tests.agent.web import serve
from tests.gateway.gateways import ADMIN, PAINT, TOKEN, Gateway, spec_of
from tests.gateway.sdk import PredictClient, PredictException, StringRequest
from tests.gateway.test_proxy import echo

OURS = {"Server", "Date"}


async def refusal(served: Gateway, service: str, headers: dict[str, str], **fields: Any) -> Any:
    """Everything that a refused caller sees."""
    url = f"{served.origin}/api/predict/{service}/x"
    method = fields.pop("method", "GET")
    async with served.http.request(method, url, headers=headers, **fields) as answer:
        headers_seen = sorted((k, v) for k, v in answer.headers.items() if k != "Date")
        return answer.status, headers_seen, await answer.read()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "wrong"},
        {"Authorization": ""},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "EAS wrong"},
        {"Authorization": ADMIN},
        {"Authorization": "-" * 64},
        {"Authorization": "x", "Accept": "text/html"},
        {"Cookie": f"easel_link_{PAINT}=x"},
        {"Authorization": "wrong", "Origin": "http://elsewhere.example"},
    ],
)
async def test_a_refusal_does_not_tell_what_exists(
    served: Gateway, headers: dict[str, str]
) -> None:
    async with serve(echo) as url:
        served.stands(url)
        existing = await refusal(served, PAINT, headers)
        missing = await refusal(served, "other", headers)
    assert existing == missing
    assert existing[0] == 401
    if "Accept" not in headers:
        assert existing[2] == b'{"code":"Unauthorized","message":"Invalid token"}'


async def test_preflights_and_missing_slashes_do_not_tell_either(served: Gateway) -> None:
    asked = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
    for headers, method in ((asked, "OPTIONS"), ({"Accept": "text/html"}, "GET")):
        seen = []
        for service in (PAINT, "othen"):
            url = f"{served.origin}/api/predict/{service}"
            async with served.http.request(
                method, url, headers=headers, allow_redirects=False
            ) as answer:
                body = (await answer.text()).replace(service, "S")
                place = answer.headers.get("Location", "").replace(service, "S")
                seen.append((answer.status, place, body))
        assert seen[0] == seen[1]


@pytest.mark.parametrize("form", ["{}", "Bearer {}", "bearer {}"])
async def test_the_token_opens_the_service(served: Gateway, form: str) -> None:
    async with serve(echo) as url:
        served.stands(url)
        headers = {"Authorization": form.format(TOKEN)}
        async with served.http.get(served.url + "/x", headers=headers) as answer:
            assert answer.status == 200


async def test_another_services_token_does_not(served: Gateway) -> None:
    await served.services.deploy(spec_of("other", token="its own"), "{}", [])
    async with serve(echo) as url:
        served.stands(url)
        for service, token, status in (
            ("other", "its own", 503),
            ("other", TOKEN, 401),
            (PAINT, "its own", 401),
        ):
            found = await refusal(served, service, {"Authorization": token})
            assert found[0] == status


async def test_a_replaced_token_is_refused_at_once(served: Gateway) -> None:
    async with serve(echo) as url:
        served.stands(url)
        token = TOKEN
        for number in range(20):
            await served.services.reset_token(PAINT, f"token-{number}")
            assert (await refusal(served, PAINT, {"Authorization": token}))[0] == 401
            token = f"token-{number}"
            assert (await refusal(served, PAINT, {"Authorization": token}))[0] == 200
        await served.services.store.delete(PAINT)
        served.state.directory._bus.publish("fleet")
        assert (await refusal(served, PAINT, {"Authorization": token}))[0] == 401


async def test_the_owner_is_the_callers_word(served: Gateway) -> None:
    for owner in ("ann", "ann@example.org", "x" * 128):
        async with served.call("POST", "/api/run", headers={"Easel-Owner": owner}) as answer:
            assert (await answer.json())["owner"] == owner
    async with served.call("POST", "/api/run") as answer:
        assert (await answer.json())["owner"] == ""
    for owner in ("x" * 129, "\xe4"):
        async with served.call("POST", "/api/run", headers={"Easel-Owner": owner}) as answer:
            assert answer.status == 400


# The vendor's SDK, as it is.


def predict(endpoint: str, service: str, token: str, body: str, **settings: Any) -> bytes:
    """Call with the vendor's client; runs in a thread."""
    client = PredictClient(endpoint, service)
    client.set_token(token)
    client.set_retry_count(1)
    for name, value in settings.items():
        getattr(client, f"set_{name}")(value)
    client.init()
    try:
        answer: bytes = client.predict(StringRequest(body)).response_data
        return answer
    finally:
        client.destroy()
        client.connection_pool.clear()


@pytest.mark.parametrize(
    "path", ["", "/prompt", "/some/path", "/with?query=1&b=%20", "/caf\xe9", "/a%2Fb", "/a b"]
)
@pytest.mark.parametrize("content_type", ["", "application/json"])
async def test_the_vendors_client_is_let_in(served: Gateway, path: str, content_type: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async with serve(handler) as url:
        served.stands(url)
        body = '{"prompt": {}}'
        settings = {"content_type": content_type} if content_type else {}
        answer = await asyncio.to_thread(
            predict, served.origin, PAINT + path, TOKEN, body, **settings
        )
        assert answer == body.encode()
        large = "x" * 1_000_000
        if path != "/prompt":
            answer = await asyncio.to_thread(predict, served.origin, PAINT + path, TOKEN, large)
            assert answer == large.encode()
        with pytest.raises(PredictException, match="Unauthorized"):
            await asyncio.to_thread(predict, served.origin, PAINT + path, "wrong", body)


def signed(body: bytes, date: str, md5: str | None = None, **changes: str) -> dict[str, str]:
    """Headers as the SDK makes them."""
    digest = hashlib.md5(body).hexdigest() if md5 is None else md5
    made = sign(
        TOKEN.encode(),
        method=b"POST",
        md5=digest.encode(),
        content_type=b"text/plain",
        date=date.encode(),
        resource=f"/api/predict/{PAINT}/x".encode(),
    )
    headers = {"Date": date, "Content-Type": "text/plain", "Authorization": f"EAS {made.decode()}"}
    return headers | ({"Content-MD5": digest} if digest else {}) | changes


NOW = "Thu, 01 Jan 1970 00:00:00 GMT"


async def test_what_was_signed_is_what_counts(served: Gateway, monkeypatch: Any) -> None:
    monkeypatch.setattr("easel.gateway.auth.now_ms", lambda: 0)
    body = b"x" * 100
    short = next(  # a digest that begins with 0, as Java prints it
        data for n in range(999) if (data := b"%d" % n) and md5_of(data).startswith("0")
    )
    good = signed(body, NOW)
    tries: list[tuple[dict[str, str], bytes, int]] = [
        (good, body, 200),
        (good, b"another body", 401),
        (good, b"x" * 99 + b"y", 401),
        ({**good, "Content-MD5": "0" * 32}, body, 401),
        ({**good, "Content-Type": "text/html"}, body, 401),
        ({**good, "Date": "Thu, 01 Jan 1970 00:00:01 GMT"}, body, 401),
        (signed(body, NOW, ""), body, 401),
        (signed(b"", NOW, ""), b"", 200),
        (signed(short, NOW, md5_of(short).lstrip("0")), short, 200),
        (signed(body, "Fri, 02 Jan 1970 00:00:00 GMT"), body, 401),
        (signed(body, "Thu, 01 Jan 1970 14:00:00 GMT"), body, 200),
        (signed(body, "Wed, 31 Dec 1969 01:00:00 GMT"), body, 200),
        (signed(body, "Do, 01 Januar 1970"), body, 200),
    ]
    async with serve(echo) as url:
        served.stands(url)
        for headers, data, status in tries:
            found = await refusal(served, PAINT, headers, method="POST", data=data)
            assert found[0] == status, (headers, found)


def md5_of(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("path", ["/x", "/prompt", "/api/run"])
async def test_a_large_body_that_was_changed_on_its_way_is_never_complete(
    served: Gateway, chunked: bool, path: str
) -> None:
    complete: list[int] = []

    async def handler(request: web.Request) -> web.Response:
        complete.append(len(await request.read()))
        return web.Response()

    body = b'{"x": "' + b"x" * 1_000_000 + b'"}'
    date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    made = sign(
        TOKEN.encode(),
        method=b"POST",
        md5=md5_of(body).encode(),
        content_type=b"text/plain",
        date=date.encode(),
        resource=f"/api/predict/{PAINT}{path}".encode(),
    )
    headers = {
        "Authorization": f"EAS {made.decode()}",
        "Content-MD5": md5_of(body),
        "Content-Type": "text/plain",
        "Date": date,
    }

    async def pieces(data: bytes) -> Any:
        for begin in range(0, len(data), 100_000):
            yield data[begin : begin + 100_000]

    async with serve(handler) as url:
        served.stands(url)
        for data, status in ((body, 200), (body[:-1] + b"!", 401)):
            sent: Any = pieces(data) if chunked else data
            async with served.http.post(served.url + path, headers=headers, data=sent) as answer:
                if path == "/api/run" and status == 401:
                    assert answer.status in (401, 500)
                else:
                    assert answer.status == status
    assert len(complete) == (path != "/api/run")
