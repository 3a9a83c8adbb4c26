"""Log lines: JSON, with service, task and instance; a line for each request."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.gateway.logs import AccessLog, formatter, structured_logs
from tests.agent.web import serve
from tests.gateway.gateways import PAINT, gateway
from tests.gateway.test_proxy import echo
from tests.waiting import until


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def test_records_become_json(stream: io.StringIO) -> None:
    log = logging.getLogger("easel.somewhere")
    with structured_logs(stream):
        log.info("started %s", "it", extra={"service": "paint", "instance": "i-1", "task": "t"})
        log.debug("not this")
        try:
            raise ValueError("broken")
        except ValueError:
            log.exception("failed", extra={"secret": "x"})
        logging.getLogger("uvicorn.error").info("not this either")
        log.warning("odd \udc80 \n line", extra={"service": object()})
    first, second, third = lines(stream.getvalue())
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "started it",
        "level": "info",
        "logger": "easel.somewhere",
        "service": "paint",
        "instance": "i-1",
        "task": "t",
    }
    assert "ValueError: broken" in second["exception"]
    assert "secret" not in second
    assert third["event"] == "odd \\udc80 \n line"


def test_the_hosts_handlers_come_back(stream: io.StringIO) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    with structured_logs(stream):
        assert root.handlers != before[0]
    assert (root.handlers, root.level) == before


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()


@given(st.text(), st.dictionaries(st.sampled_from(["service", "task", "owner"]), values))
def test_whatever_is_logged_is_one_line_of_json(message: str, extra: dict[str, Any]) -> None:
    record = logging.getLogger("x").makeRecord(
        "x", logging.INFO, "", 0, "%s", (message,), None, extra=extra
    )
    text = formatter().format(record)
    assert "\n" not in text
    assert set(extra) <= set(json.loads(text))


@pytest.fixture
def access(stream: io.StringIO) -> Iterator[AccessLog]:
    with structured_logs(stream) as found:
        yield found


async def test_every_request_has_a_line_without_its_query(
    tmp_path: Path, stream: io.StringIO, access: AccessLog
) -> None:
    async with serve(echo) as url, gateway(tmp_path, access=access) as served:
        served.stands(url)
        async with served.call("POST", "/x?easel_link=proof", data=b"12345") as answer:
            assert (await answer.json())["path"] == "/x"
        async with served.http.get(served.url + "/y"):
            pass
        async with served.http.get(served.origin + "/healthz"):
            pass
        async with served.http.ws_connect(served.origin + "/easel/link") as ws:
            await ws.receive(timeout=10)

    async def written() -> list[dict[str, Any]] | None:
        found = [one for one in lines(stream.getvalue()) if one["logger"] == AccessLog.NAME]
        return found if len(found) == 4 else None

    found = await until(written, timeout=10)
    shown = [
        (one["door"], one["method"], one["path"], one["status"], one.get("service", ""))
        for one in found
    ]
    assert shown == [
        ("predict", "POST", f"/api/predict/{PAINT}/x", 200, PAINT),
        ("predict", "GET", f"/api/predict/{PAINT}/y", 401, ""),
        ("health", "GET", "/healthz", 200, ""),
        ("link", "WS", "/easel/link", 101, ""),
    ]
    assert found[0]["instance"] == "i-0"
    assert (found[0]["bytes_up"], found[0]["client"]) == (5, "127.0.0.1")
    assert found[0]["ms"] > 0
    assert found[1]["reason"] == "no token"
    assert "proof" not in stream.getvalue()


async def test_a_full_pipe_holds_up_nobody(tmp_path: Path) -> None:
    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            released.wait(20)
            return super().write(text)

    released = threading.Event()
    stream = Stuck()
    log = logging.getLogger("easel.somewhere")

    async def talk() -> None:
        for number in range(1000):
            log.info("line %d", number)
            await asyncio.sleep(0)

    def run() -> None:
        with structured_logs(stream):
            asyncio.run(asyncio.wait_for(talk(), 10))
            released.set()

    await asyncio.to_thread(run)
    assert len(lines(stream.getvalue())) == 1000
