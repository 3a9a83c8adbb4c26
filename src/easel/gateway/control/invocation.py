"""Invocation information: how a service is called, and calling it once from here (online debugging)."""

from __future__ import annotations

import base64
import json
import shlex
import time
from typing import Any

import aiohttp

from easel.errors import UpstreamFailed
from easel.gateway.control.views import Endpoint, Example, Invocation, Invoked

MOST_SHOWN = 1024 * 1024
"""Bytes of an answer that are shown."""
TIMEOUT = 600.0

PROMPT = '{"prompt": {"1": {"class_type": "...", "inputs": {}}}}'


def endpoint_of(name: str, base_url: str, token: str, *, webui: bool) -> Endpoint:
    """Return a service's address, token, and calls to paste. ``base_url`` is the gateway's, without a slash at its end."""
    endpoint = f"{base_url}/api/predict/{name}"
    host = base_url.partition("://")[2]
    auth = shlex.quote(f"Authorization: {token}")
    examples = [
        Example(
            title="run a workflow and wait for its outputs",
            text=f"curl -X POST {endpoint}/api/run \\\n  -H {auth} \\\n  --data @workflow.json",
        ),
        Example(
            title="the same, later: 202 at once, then ask",
            text=(
                f"curl -X POST {endpoint}/api/run \\\n  -H {auth} \\\n"
                "  -H 'X-Fc-Invocation-Type: Async' -H 'task-id: my-task-1' \\\n"
                "  --data @workflow.json\n"
                f"curl '{endpoint}/api/status?id=my-task-1' -H {auth}"
            ),
        ),
        Example(
            title="ComfyUI's own API",
            text=(
                f"curl -X POST {endpoint}/prompt \\\n  -H {auth} \\\n"
                f"  -H 'Content-Type: application/json' \\\n  -d '{PROMPT}'\n"
                f"curl {endpoint}/history/PROMPT_ID -H {auth}"
            ),
        ),
        Example(
            title="Python, with the vendor's SDK (pip install eas-prediction)",
            text=(
                "from eas_prediction import PredictClient, StringRequest\n\n"
                f"client = PredictClient({('http://' + host)!r}, {name + '/prompt'!r})\n"
                f"client.set_token({token!r})\n"
                "client.set_timeout(60000)\n"
                "client.init()\n"
                "print(client.predict(StringRequest(open('body.json').read())))"
            ),
        ),
        Example(
            title="Easel's command line",
            text=f"easel run workflow.json --service {name}",
        ),
    ]
    web = f"{endpoint}/" if webui else None
    return Endpoint(endpoint=endpoint, token=token, webui=web, examples=examples)


async def invoke(url: str, token: str, asked: Invocation) -> Invoked:
    """Send one request to a service through its own door, and return the answer, cut at a mebibyte.

    Raises UpstreamFailed when the gateway itself cannot be reached.
    """
    headers = {"Authorization": token, **asked.headers}
    body: dict[str, Any] = {}
    if asked.body is not None:
        is_text = isinstance(asked.body, str)
        body["data"] = asked.body.encode() if is_text else json.dumps(asked.body).encode()
        headers.setdefault("Content-Type", "text/plain" if is_text else "application/json")
    begin = time.perf_counter()
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.request(
                asked.method, url + asked.path, headers=headers, allow_redirects=False, **body
            ) as response,
        ):
            data = bytearray()
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > MOST_SHOWN:
                    break
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise UpstreamFailed(f"{asked.method} {asked.path}: {error or 'timed out'}") from error
    return Invoked(
        status=response.status,
        reason=response.reason or "",
        headers=[(name, value) for name, value in response.headers.items()],
        milliseconds=(time.perf_counter() - begin) * 1000,
        truncated=len(data) > MOST_SHOWN,
        **_shown(bytes(data[:MOST_SHOWN])),
    )


def _shown(data: bytes) -> dict[str, Any]:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(data).decode()}
    try:
        return {"json": json.loads(text)} if text else {}
    except ValueError:
        return {"text": text}
