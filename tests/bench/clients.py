"""The two ways to one picture that the benchmark compares, and the check that it is the right one."""

from __future__ import annotations

import base64
import io
import uuid
from typing import Any, Protocol

import aiohttp
import msgspec
from PIL import Image

SIDE = 8


def prompt(colour: int) -> dict[str, Any]:
    """Return a prompt of next to no work whose picture tells calls apart: one colour, nothing cached."""
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": SIDE, "height": SIDE, "batch_size": 1, "color": colour},
        },
        "2": {
            "class_type": "PreviewImage",
            "inputs": {"images": ["1", 0]},
        },
    }


class WrongResult(Exception):
    """A call came back with something other than its own picture."""


def check(picture: bytes, colour: int) -> None:
    """Raise `WrongResult` unless the picture is of this colour alone."""
    with Image.open(io.BytesIO(picture)) as image:
        expected = (colour >> 16 & 255, colour >> 8 & 255, colour & 255)
        if image.size != (SIDE, SIDE) or image.convert("RGB").getpixel((0, 0)) != expected:
            raise WrongResult(f"colour {colour:06x}")


class Caller(Protocol):
    """One way to run a prompt and get its picture."""

    async def __call__(self, session: aiohttp.ClientSession, colour: int) -> None:
        """Run one call and check its result."""


class Direct:
    """A client that speaks to ComfyUI itself: connect, post, hear the end, history, view."""

    def __init__(self, engine: str) -> None:
        self.engine = engine

    async def __call__(self, session: aiohttp.ClientSession, colour: int) -> None:
        """Run one call."""
        client_id = uuid.uuid4().hex
        async with session.ws_connect(f"{self.engine}/ws?clientId={client_id}") as socket:
            await socket.receive()
            body = msgspec.json.encode({"prompt": prompt(colour), "client_id": client_id})
            async with session.post(f"{self.engine}/prompt", data=body) as response:
                response.raise_for_status()
                prompt_id = msgspec.json.decode(await response.read())["prompt_id"]
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                event = msgspec.json.decode(message.data)
                data = event["data"]
                if (
                    event["type"] == "executing"
                    and data["node"] is None
                    and data["prompt_id"] == prompt_id
                ):
                    break
        async with session.get(f"{self.engine}/history/{prompt_id}") as response:
            entry = msgspec.json.decode(await response.read())[prompt_id]
        image = entry["outputs"]["2"]["images"][0]
        async with session.get(f"{self.engine}/view", params=image) as response:
            check(await response.read(), colour)


class ThroughAgent:
    """One call of the agent: `POST /api/run` with the picture in the answer."""

    def __init__(self, agent: str) -> None:
        self.agent = agent

    async def __call__(self, session: aiohttp.ClientSession, colour: int) -> None:
        """Run one call."""
        body = msgspec.json.encode(prompt(colour))
        async with session.post(
            f"{self.agent}/api/run?output_base64=true",
            data=body,
            headers={"Content-Type": "application/json"},
        ) as response:
            answer = await response.read()
            if response.status != 200:
                raise WrongResult(f"HTTP {response.status}: {answer[:300]!r}")
            check(base64.b64decode(msgspec.json.decode(answer)["2"]["results"][0]), colour)
