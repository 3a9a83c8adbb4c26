"""ComfyUI's HTTP routes, one method each, with time-outs and Easel's errors."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from yarl import URL

from easel.comfy.answers import (
    Accepted,
    FileRef,
    HistoryEntry,
    QueueSnapshot,
    decode,
    decode_accepted,
    decode_history,
    decode_queue,
    decode_upload,
)
from easel.comfy.body import prompt_body
from easel.comfy.refusals import refusal
from easel.errors import (
    BadRequest,
    ConfigurationError,
    EngineError,
    EngineProtocolError,
    EngineSilent,
    EngineUnavailable,
    FileNotFound,
    InputRejected,
)
from easel.workflow.types import NodeId, Prompt

_object = msgspec.json.Decoder(dict[str, Any])
_JSON = {"Content-Type": "application/json"}
_CONNECT_TIMEOUT = 10.0
_IDLE_SECONDS = 300
_SMALL = 1024 * 1024


class FileStream:
    """A file on its way from the engine."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.content_type = response.headers.get("Content-Type", "application/octet-stream")
        length = response.headers.get("Content-Length")
        self.length = int(length) if length and length.isdigit() else None
        """Bytes to come, where the engine says."""

    async def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the bytes as they come. Raises EngineUnavailable or EngineSilent when they stop coming."""
        with _translated("GET /view"):
            async for chunk in self._response.content.iter_any():
                yield chunk

    async def read(self) -> bytes:
        """Read the whole file into memory."""
        with _translated("GET /view"):
            return await self._response.read()


class ComfyClient:
    """One ComfyUI server's HTTP routes.

    All methods raise EngineUnavailable when it cannot be reached, EngineSilent when it does not answer within
    ``timeout`` seconds, EngineProtocolError when the answer is not ComfyUI's. ``headers`` go with every request, such as
    an ``Authorization``. A ``session`` given stays the caller's to close.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout: float = 30.0,
        headers: Mapping[str, str] | None = None,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        url = URL(base_url)
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigurationError(
                f"{base_url!r} is not the URL of a ComfyUI", hint="such as http://127.0.0.1:8188"
            )
        self.base_url = str(url.with_query(None).with_fragment(None)).rstrip("/")
        self.timeout = timeout
        self._session = session
        self._own_session = session is None
        # No gzip on a local hop; and so nothing has to be unpacked on the way through.
        self._headers = {"Accept-Encoding": "identity", **(headers or {})}
        self._whole = aiohttp.ClientTimeout(total=timeout, connect=min(timeout, _CONNECT_TIMEOUT))
        self._stream = aiohttp.ClientTimeout(
            total=None, connect=min(timeout, _CONNECT_TIMEOUT), sock_read=timeout
        )
        self._queue_url = self.url("/queue")
        self._prompt_url = self.url("/prompt")
        self._history_url = f"{self.base_url}/history/"

    def url(self, path: str) -> URL:
        """Return the URL of an escaped path below the server's root."""
        return URL(self.base_url + path, encoded=True)

    @property
    def session(self) -> aiohttp.ClientSession:
        """The session all requests and the socket go through; made at the first use, on the running loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session

    @property
    def headers(self) -> Mapping[str, str]:
        """What goes with every request."""
        return self._headers

    async def close(self) -> None:
        """Close the session, if it is our own."""
        session, self._session = self._session, None
        if session is not None and self._own_session:
            await session.close()

    async def __aenter__(self) -> ComfyClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def system_stats(self) -> dict[str, Any]:
        """Return ``/system_stats``: version, devices, memory. Answers from the moment the engine is ready."""
        return decode(await self._get("/system_stats"), _object, "GET /system_stats")

    async def object_info(self, name: str | None = None) -> dict[str, Any]:
        """Return ``/object_info`` (half a megabyte) or one class of it; an unknown class gives ``{}``."""
        path = "/object_info" if name is None else f"/object_info/{quote(name, safe='')}"
        return decode(await self._get(path), _object, f"GET {path}")

    async def queue_remaining(self) -> int:
        """Return how many prompts wait or run, of everybody: the cheapest question an engine answers."""
        answer = decode(await self._get("/prompt"), _object, "GET /prompt")
        info = answer.get("exec_info")
        remaining = info.get("queue_remaining") if isinstance(info, dict) else None
        if not isinstance(remaining, int):
            raise EngineProtocolError("the engine's answer to GET /prompt has no queue_remaining")
        return remaining

    async def queue(self) -> QueueSnapshot:
        """Return the ids of the prompts that run and wait, of everybody."""
        return decode_queue(await self._request("GET", self._queue_url))

    async def history(self, prompt_id: str) -> HistoryEntry | None:
        """Return how a prompt ended; None while it has not, and when the engine does not know it."""
        url = URL(self._history_url + quote(prompt_id, safe=""), encoded=True)
        return decode_history(await self._request("GET", url), prompt_id)

    async def post_prompt(
        self,
        prompt: Prompt,
        *,
        client_id: str,
        prompt_id: str,
        extra_data: Mapping[str, Any] | None = None,
        targets: Sequence[NodeId] | None = None,
    ) -> Accepted:
        """Queue a prompt whose messages go to the socket of ``client_id``. See `prompt_body` for what is sent.

        Raises InvalidPrompt with ComfyUI's ``error`` and ``node_errors`` when no output is valid, BodyTooLarge.
        """
        body = prompt_body(
            prompt,
            client_id=client_id,
            prompt_id=prompt_id,
            extra_data=extra_data,
            targets=targets,
        )
        return decode_accepted(await self._request("POST", self._prompt_url, body))

    async def interrupt(self, prompt_id: str) -> None:
        """Stop a prompt if it is the one that runs; else nothing happens."""
        await self._post("/interrupt", {"prompt_id": prompt_id})

    async def delete_pending(self, *prompt_ids: str) -> None:
        """Take prompts out of the waiting line; those that run or are unknown are not touched."""
        await self._post("/queue", {"delete": list(prompt_ids)})

    async def free(self, *, unload_models: bool = True, free_memory: bool = True) -> None:
        """Ask the engine to drop models and cached results once it is idle."""
        await self._post("/free", {"unload_models": unload_models, "free_memory": free_memory})

    async def upload(
        self,
        name: str,
        data: bytes | Path,
        *,
        folder: str = "input",
        subfolder: str = "",
        overwrite: bool = False,
    ) -> FileRef:
        """Store a file in one of the engine's folders and return where: a name that is taken gets a number.

        Raises InputRejected for a name with control characters, BodyTooLarge, EngineProtocolError when the engine refuses
        the name.
        """
        if not name or not name.isprintable():
            raise InputRejected(f"{name!r} is not a file name")
        with contextlib.ExitStack() as stack:
            if isinstance(data, Path):
                content: Any = stack.enter_context(await asyncio.to_thread(data.open, "rb"))
            else:
                content = data
            # As browsers write it: aiohttp's own way, percent signs, would become part of the name.
            form = aiohttp.FormData(quote_fields=False, charset="utf-8")
            form.add_field("image", content, filename=name, content_type="application/octet-stream")
            form.add_field("type", folder)
            form.add_field("subfolder", subfolder)
            form.add_field("overwrite", "true" if overwrite else "false")
            return decode_upload(
                await self._request("POST", self.url("/upload/image"), form, timeout=self._stream)
            )

    @contextlib.asynccontextmanager
    async def view(self, file: FileRef) -> AsyncIterator[FileStream]:
        """Open a file of the engine for reading, unchanged. Raises FileNotFound."""
        query = urlencode(
            {"filename": file.filename, "subfolder": file.subfolder, "type": file.type},
            quote_via=quote,
            errors="replace",
        )
        with _translated("GET /view"):
            response = await self.session.get(
                self.url(f"/view?{query}"),
                headers=self._headers,
                timeout=self._stream,
                allow_redirects=False,
            )
        async with response:
            if response.status != 200:
                with _translated("GET /view"):
                    text = await response.text(errors="replace")
                raise _view_refusal(file, response.status, text)
            yield FileStream(response)

    async def download(self, file: FileRef, path: Path) -> int:
        """Copy a file of the engine to ``path`` and return its size. Raises FileNotFound, OSError."""
        async with self.view(file) as stream:
            sink = await asyncio.to_thread(path.open, "wb")
            size = 0
            waiting = bytearray()
            try:
                async for chunk in stream.chunks():
                    size += len(chunk)
                    waiting += chunk
                    if len(waiting) >= _SMALL:
                        await asyncio.to_thread(sink.write, bytes(waiting))
                        waiting.clear()
                await asyncio.to_thread(sink.write, bytes(waiting))
            finally:
                await asyncio.to_thread(sink.close)
            return size

    async def _get(self, path: str) -> bytes:
        return await self._request("GET", self.url(path))

    async def _post(self, path: str, body: object) -> None:
        await self._request("POST", self.url(path), msgspec.json.encode(body))

    async def _request(
        self,
        method: str,
        url: URL,
        body: bytes | aiohttp.FormData | None = None,
        *,
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> bytes:
        """Send a request and return the body of its 200 answer."""
        what = f"{method} {url.path}"
        headers = {**self._headers, **_JSON} if isinstance(body, bytes) else self._headers
        # aiohttp writes bytes in one piece; a stream it writes in many, and others get their turn in between.
        data = io.BytesIO(body) if isinstance(body, bytes) and len(body) > _SMALL else body
        with _translated(what):
            async with self.session.request(
                method,
                url,
                data=data,
                headers=headers,
                timeout=timeout or self._whole,
                allow_redirects=False,
            ) as response:
                raw = await response.read()
                if response.status == 200:
                    return raw
        raise refusal(what, response.status, raw)


@contextlib.contextmanager
def _translated(what: str) -> Any:
    """Turn what aiohttp raises into Easel's errors."""
    try:
        yield
    except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
        raise EngineUnavailable(
            f"the engine cannot be reached ({what}): {error or 'time-out'}",
            hint="is ComfyUI running, and is its address right?",
        ) from error
    except TimeoutError as error:
        raise EngineSilent(f"the engine did not answer {what} in time") from error
    except (aiohttp.ClientError, ConnectionError) as error:
        reason = str(error) or type(error).__name__
        raise EngineUnavailable(f"the engine broke off {what}: {reason}") from error


def _view_refusal(file: FileRef, status: int, text: str) -> FileNotFound | EngineError | BadRequest:
    if status in (400, 403, 404):
        return FileNotFound(
            f"the engine has no file {file.filename!r} in {file.type}/{file.subfolder}"
        )
    return EngineProtocolError(f"the engine answered GET /view with {status}: {text[:200]}")
