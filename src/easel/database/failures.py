"""What a database's failures mean to people. No message made here contains a password."""

from __future__ import annotations

import re

import sqlalchemy as sa

from easel.errors import StoreFailed

_MEANINGS = (
    (
        r"invalid (connection option|port|integer value|sslmode)",
        "correct the URL's port and options",
    ),
    (
        r"support ssl|certificate",
        "choose another sslmode in the URL's options, or set up the server's certificate",
    ),
    (r"password|authentication", "check user name and password in the URL"),
    (r"role .* does not exist", "create the user first, or check the name in the URL"),
    (r"database .* does not exist", "create the database first"),
    (r"pg_hba", "let this machine in with the server's pg_hba.conf"),
    (
        r"permission denied|no schema has been selected",
        "grant the user the right to create and use tables",
    ),
    (r"readonly|read-only", "make the database file and its folder writable for Easel's user"),
    (r"disk is full|no space", "the disk is full: free some space"),
    (r"disk i/o", "the disk or its file system fails: look at the system's log"),
    (r"locked", "another process keeps the database locked: stop it, or wait"),
    (r"not a database|file is encrypted", "the file is something else: choose another name"),
    (r"malformed|corrupt", "the file is damaged: restore it from a copy"),
    (r"unable to open", "check that the folder exists and Easel's user may write there"),
    (r"too many (connections|clients)|connection slots", "raise the server's connection limit"),
    (
        r"connect|refused|starting up|shutting down|terminat|timed? ?out|timeout|resolve|name or service|closed",
        "start the database, or check host and port in the URL; Easel goes on when it is back",
    ),
)
"""What a driver says → what to do."""


_LASTING = re.compile(
    r"password|authentication|does not exist|pg_hba|permission denied|no schema has been selected"
    r"|invalid (connection option|port|integer value|sslmode)|bad value for|support ssl|certificate"
)


def is_lasting(error: BaseException) -> bool:
    """Tell whether a server refuses for good, as far as its words say: waiting does not help."""
    return _LASTING.search(str(getattr(error, "orig", None) or error).lower()) is not None


def described(url: sa.URL) -> str:
    """Return the URL for messages: without password, and without options, which may hold one."""
    return url.set(query={}).render_as_string(hide_password=True)


def hint_for(text: str) -> str | None:
    """Return what to do about a driver's message."""
    return next((hint for words, hint in _MEANINGS if re.search(words, text.lower())), None)


def failure(error: BaseException, url: sa.URL) -> StoreFailed:
    """Return what callers meet when the database fails: the driver's words on one line, and a remedy."""
    original = getattr(error, "orig", None) or error
    text = " ".join(str(original).split())[:500] or type(original).__name__
    for secret in (url.password, *(v for k, v in url.query.items() if "pass" in k)):
        if secret:
            text = text.replace(str(secret), "***")
    return StoreFailed(f"the database {described(url)} failed: {text}", hint=hint_for(text))
