"""What the gateway's front answers itself: errors in the words that each kind of client understands.

- A wrong token: one body for every service, existing or not.
- No instance: the vendor's text, word for word (eas-and-fc.md C); JSON for clients that ask for JSON or are ComfyUI's front end.
- Everything else: JSON in the shape that ComfyUI's clients read (``error``, ``node_errors``), our own fields beside it.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.types import Send

from easel.errors import (
    BodyTooLarge,
    EaselError,
    NoHealthyUpstream,
    RateLimited,
    RequestTimeout,
    UpstreamFailed,
    UpstreamTimeout,
)
from easel.gateway.origins import Headers
from easel.gateway.request import Head, extensions

NO_HEALTHY_UPSTREAM = "no healthy upstream"
UNAUTHORIZED = b'{"code":"Unauthorized","message":"Invalid token"}'
RETRY_AFTER = {429: 1, 450: 5, 503: 5}
"""Status → seconds after which trying again makes sense."""
CLIENT_LEFT = 499

JSON = b"application/json"
TEXT = b"text/plain; charset=utf-8"
HTML = b"text/html; charset=utf-8"

_encode = msgspec.json.Encoder().encode

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>{head}</head>
<body style="font-family: sans-serif; max-width: 40em; margin: 4em auto"><h1>{title}</h1><p>{text}</p></body></html>
"""


async def answer(  # noqa: PLR0917 - what an answer is made of, in its order
    send: Send,
    head: Head,
    status: int,
    body: bytes = b"",
    media_type: bytes = TEXT,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> int:
    """Send a whole answer, also instead of a WebSocket; returns the status."""
    all_headers = [
        (b"content-type", media_type),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    kind = "http.response"
    if head.scope["type"] == "websocket":
        if "websocket.http.response" not in extensions(head.scope):
            await send({"type": "websocket.close", "code": 1008})
            return status
        kind = "websocket.http.response"
    await send({"type": f"{kind}.start", "status": status, "headers": all_headers})
    await send({"type": f"{kind}.body", "body": body, "more_body": False})
    return status


def as_comfyui(error: EaselError) -> dict[str, Any]:
    """Return an error in the shape that ComfyUI's clients read, with our own words beside it."""
    shape = {
        "type": error.code,
        "message": error.message,
        "details": error.hint or "",
        "extra_info": {},
    }
    return {"error": shape, "node_errors": {}, **error.to_json()}


def page(title: str, text: str, *, again: int | None = None) -> bytes:
    """Return a small page for people; ``again`` reloads it after as many seconds."""
    head = f'<meta http-equiv="refresh" content="{again}">' if again else ""
    return PAGE.format(title=html.escape(title), text=html.escape(text), head=head).encode()


def wants_json(head: Head) -> bool:
    """Tell whether a client asks for JSON, or is ComfyUI's front end, which reads nothing else."""
    return head.accepts(b"json") or b"comfy-user" in head.fields


async def unauthorized(send: Send, head: Head, headers: Headers) -> int:
    """Refuse a caller."""
    if head.accepts(b"text/html"):
        text = "The link has expired or is not valid. Ask whoever runs the service for another one."
        return await answer(send, head, 401, page("Not open to you", text), HTML, headers)
    return await answer(send, head, 401, UNAUTHORIZED, JSON, headers)


async def refuse(
    send: Send,
    head: Head,
    error: EaselError,
    headers: Headers,
    *,
    retry_after: int | None = None,
) -> int:
    """Answer an error."""
    status = error.http_status
    seconds = retry_after or RETRY_AFTER.get(status)
    if seconds:
        headers = [*headers, (b"retry-after", str(seconds).encode())]
    if isinstance(error, NoHealthyUpstream) and not wants_json(head):
        if head.accepts(b"text/html"):
            text = error.hint or "The page reloads by itself."
            body = page("No instance is ready yet", text, again=3)
            return await answer(send, head, status, body, HTML, headers)
        return await answer(send, head, status, NO_HEALTHY_UPSTREAM.encode(), TEXT, headers)
    return await answer(send, head, status, _encode(as_comfyui(error)), JSON, headers)


def no_healthy_upstream(target: str) -> NoHealthyUpstream:
    """No instance can be asked."""
    hint = "the service is stopped" if target == "stopped" else "it may be starting: try again soon"
    return NoHealthyUpstream(NO_HEALTHY_UPSTREAM, hint=hint)


def too_many_requests(rate: float) -> RateLimited:
    """The service takes no more for now."""
    words = (
        f"the service takes {rate:g} requests a second" if rate else "too many requests at a time"
    )
    return RateLimited(words, hint="try again after what Retry-After says")


def too_long(keepalive_ms: int) -> RequestTimeout:
    """The request took longer than the service allows."""
    return RequestTimeout(
        f"the request took longer than {keepalive_ms} ms",
        hint="run long workflows through /api/run, or raise the service's rpc.keepalive",
    )


def too_slow(seconds: float) -> RequestTimeout:
    """The client stopped sending."""
    return RequestTimeout(f"nothing of the request's body came for {seconds:g} s")


def no_answer(seconds: float) -> UpstreamTimeout:
    """The instance is silent."""
    return UpstreamTimeout(f"the instance did not answer within {seconds:g} s")


def broke_off() -> UpstreamFailed:
    """The instance closed the connection instead of answering."""
    return UpstreamFailed("the instance broke off before it answered", hint="try again")


def too_large(limit: int) -> BodyTooLarge:
    """The body is over the limit."""
    return BodyTooLarge(f"the body is larger than {limit} bytes")
