"""Who calls: the one place where tokens, signatures and signed links are judged, for every door.

A service's callers show its token, bare (the vendor's way) or after ``Bearer``, or the SDK's signature; a browser shows a
signed link or the cookie it was given for one. Who shows something wrong is told the same whether the service exists or not,
and about as fast.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from easel.errors import BadRequest, Unauthorized
from easel.gateway import signature
from easel.gateway.directory import Entry
from easel.gateway.links import COOKIE, Links, now_ms
from easel.gateway.request import Head

NOBODY = b"-" * 64
"""What is compared where there is no token, for the time it takes."""
LONGEST_OWNER = 128


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls."""

    service: str
    owner: str = ""
    """Whose tasks and instances' answers these are within the service (header ``Easel-Owner``)."""
    browser: bool = False
    """Came with a signed link: may use the WebUI and ComfyUI's own routes only."""
    seconds_left: float | None = None
    """How long the link is good for; given when it came in the address, and a cookie is to be set."""
    md5: str | None = None
    """MD5 that the body must have: it was signed."""


@dataclass(frozen=True, slots=True)
class Denied:
    """Why not, for the log: callers are not told."""

    reason: str


def authenticate(head: Head, name: str, entry: Entry | None, links: Links) -> Caller | Denied:
    """Tell who calls a service. ``entry`` is None for a service that does not exist.

    Raises BadRequest for an owner that cannot be one.
    """
    given = head.authorization
    token = entry.token if entry is not None and entry.token else NOBODY
    if given:
        known = entry is not None and bool(entry.token)
        if given.startswith(signature.SCHEME):
            md5 = _signed(head, given, token)
            if isinstance(md5, Denied):
                return md5
            return Caller(name, _owner(head), md5=md5) if known else Denied("no such service")
        if given[:7].lower() == b"bearer ":
            given = given[7:].strip()
        if not hmac.compare_digest(given, token) or not known:
            return Denied("wrong token")
        return Caller(name, _owner(head) if head.owner else "")
    if head.link is None and not head.cookie:
        return Denied("no token")
    return _linked(head, name, entry, token, links)


def _signed(head: Head, given: bytes, token: bytes) -> str | Denied | None:
    """Return the MD5 that was signed for the body."""
    fits = signature.verify(
        given[len(signature.SCHEME) :].strip(),
        token,
        method=head.method.encode(),
        md5=head.content_md5,
        content_type=head.content_type,
        date=head.date,
        resources=signature.resources(head.raw_path, head.query),
    )
    if not fits:
        return Denied("wrong signature")
    if signature.is_outdated(head.date, now_ms()):
        return Denied("outdated signature")
    if not head.content_md5:
        return Denied("a body that was not signed") if head.has_body else None
    return signature.normal_md5(head.content_md5) or Denied("odd Content-MD5")


def _linked(
    head: Head, name: str, entry: Entry | None, token: bytes, links: Links
) -> Caller | Denied:
    for proof in ([head.link] if head.link is not None else []) + head.cookies(COOKIE + name):
        left = links.seconds_left(proof, name, token)
        if left <= 0 or entry is None or not entry.spec.webui:
            continue
        if head.cross_site():
            return Denied("another site's page")
        return Caller(name, browser=True, seconds_left=left if proof is head.link else None)
    return Denied("no valid link")


def _owner(head: Head) -> str:
    owner = head.owner.decode("latin-1")
    if len(owner) > LONGEST_OWNER or not (owner.isascii() and owner.isprintable()):
        raise BadRequest(
            f"the header Easel-Owner must be at most {LONGEST_OWNER} printable ASCII characters"
        )
    return owner


def check_admin(authorization: bytes, admin_token: str) -> None:
    """Let the operator in, by the admin token, bare or after ``Bearer``. Raises Unauthorized."""
    given = authorization[7:] if authorization[:7].lower() == b"bearer " else authorization
    expected = admin_token.encode()
    if not expected or not hmac.compare_digest(given.strip(), expected):
        raise Unauthorized("the admin token is missing or wrong")
