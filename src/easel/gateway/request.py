"""The head of a request as the gateway needs it: read once, split into what is ours and what goes on to the instance."""

from __future__ import annotations

from typing import Any, Final

from multidict import CIMultiDict
from starlette.types import Scope

from easel.gateway import origins
from easel.gateway.links import COOKIE

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers between two neighbours (RFC 9110, 7.6.1); those that Connection names besides are left out, too."""

OURS: Final = frozenset(
    {
        b"authorization",
        b"cookie",
        b"easel-owner",
        b"expect",
        b"host",
        b"origin",
        b"referer",
        b"sec-fetch-site",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
    }
)
"""Headers that an instance does not get as they came. Its engine runs other people's Python: it gets no token of ours. Where
the request comes from was judged here, and ComfyUI would compare it with its own host."""

NOTED: Final = frozenset(
    {b"accept", b"comfy-user", b"content-length", b"content-md5", b"content-type", b"date"}
)
"""Headers that matter here and go on."""


class Head:
    """A request's head."""

    __slots__ = ("_up", "fields", "has_body", "link", "method", "query", "raw_path", "scope")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.method: str = scope.get("method", "GET")
        self.raw_path: bytes = scope["raw_path"]
        self.query: bytes = scope["query_string"]
        self.link: str | None = None
        """The proof of a signed link, where the address has one."""
        fields: dict[bytes, bytes] = {}
        up: list[tuple[str, str]] = []
        for name, value in scope["headers"]:
            if name in OURS or name in HOP_BY_HOP:
                # Repeated ones are joined as RFC 9110, 5.3 has it; of Authorization and Host the first counts.
                if name not in fields:
                    fields[name] = value
                elif name == b"cookie":
                    fields[name] += b"; " + value
                elif name in (b"connection", b"x-forwarded-for"):
                    fields[name] += b", " + value
            else:
                if name in NOTED:
                    fields.setdefault(name, value)
                up.append((name.decode("ascii"), value.decode("utf-8", "surrogateescape")))
        self.fields = fields
        self._up = up
        length = fields.get(b"content-length")
        self.has_body = b"transfer-encoding" in fields or (length is not None and length != b"0")

    @property
    def authorization(self) -> bytes:
        """The Authorization header, empty where there is none."""
        return self.fields.get(b"authorization", b"")

    @property
    def content_md5(self) -> bytes:
        """The Content-MD5 header."""
        return self.fields.get(b"content-md5", b"")

    @property
    def content_type(self) -> bytes:
        """The Content-Type header."""
        return self.fields.get(b"content-type", b"")

    @property
    def date(self) -> bytes:
        """The Date header."""
        return self.fields.get(b"date", b"")

    @property
    def owner(self) -> bytes:
        """The Easel-Owner header."""
        return self.fields.get(b"easel-owner", b"")

    @property
    def cookie(self) -> bytes:
        """All cookies."""
        return self.fields.get(b"cookie", b"")

    @property
    def host(self) -> str:
        """The Host header."""
        return self.fields.get(b"host", b"").decode("latin-1")

    @property
    def origin(self) -> str | None:
        """The Origin header."""
        origin = self.fields.get(b"origin")
        return origin.decode("latin-1") if origin is not None else None

    @property
    def content_length(self) -> int | None:
        """The size of the body, where it is known."""
        length = self.fields.get(b"content-length", b"")
        return int(length) if length.isdigit() else None

    @property
    def client(self) -> str:
        """The address of who is connected to us."""
        client = self.scope.get("client")
        return str(client[0]) if client else ""

    def accepts(self, media_type: bytes) -> bool:
        """Tell whether the Accept header names a media type."""
        return media_type in self.fields.get(b"accept", b"")

    def header(self, name: str) -> str | None:
        """Return a header that goes on to the instance."""
        return next((value for key, value in self._up if key == name), None)

    def cookies(self, name: str) -> list[str]:
        """Return the values of a cookie."""
        found = []
        for part in self.cookie.decode("latin-1").split(";"):
            key, _, value = part.strip().partition("=")
            if key == name:
                found.append(value)
        return found

    def cross_site(self) -> bool:
        """Tell whether another site's page made a browser send this: its cookie says nothing then.

        A link to the WebUI's page may be followed from anywhere; nothing else may be asked from elsewhere.
        """
        origin = self.origin
        if origin is not None and not origins.is_own(origin, self.host):
            return True
        site = self.fields.get(b"sec-fetch-site", b"none")
        if site in (b"none", b"same-origin"):
            return False
        navigates = self.header("sec-fetch-mode") == "navigate" and self.method == "GET"
        return not (navigates and self.raw_path.endswith(b"/"))

    def upward(self, prefix: str, scheme: str) -> CIMultiDict[str]:
        """Return the headers for an instance that is reached under ``prefix``."""
        fields = self.fields
        headers = CIMultiDict(self._up)
        connection = fields.get(b"connection")
        if connection is not None and connection.lower() not in (b"keep-alive", b"close"):
            for named in connection.decode("latin-1").split(","):
                headers.popall(named.strip(), None)
        cookie = fields.get(b"cookie")
        if cookie:
            parts = (part.strip() for part in cookie.decode("latin-1").split(";"))
            kept = "; ".join(part for part in parts if not part.startswith(COOKIE))
            if kept:
                headers["Cookie"] = kept
        before = fields.get(b"x-forwarded-for")
        client = self.client
        headers["X-Forwarded-For"] = (
            f"{before.decode('latin-1')}, {client}" if before is not None else client
        )
        headers["X-Forwarded-Proto"] = scheme
        headers["X-Forwarded-Host"] = self.host
        headers["X-Forwarded-Prefix"] = prefix
        return headers


def extensions(scope: Scope) -> dict[str, Any]:
    """Return what the server offers beyond plain ASGI."""
    return scope.get("extensions") or {}
