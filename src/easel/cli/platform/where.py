"""Which platform a command talks to, and with which token."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from easel.cli.report import UsageError
from easel.errors import ConfigurationError, EngineUnavailable
from easel.platform.home import ADMIN_TOKEN_FILE, STATE_FILE

DEFAULT_HOME = Path("easel-data")


@dataclass(frozen=True, slots=True)
class Where:
    """A platform's control API."""

    url: str
    """The gateway, without a slash at its end."""
    token: str


def home_of(home: Path | None) -> Path:
    """Return the platform's folder: the one named, ``EASEL_HOME``, or ``easel-data`` here."""
    return home or Path(os.environ.get("EASEL_HOME") or DEFAULT_HOME)


def find(url: str | None, token: str | None, home: Path | None) -> Where:
    """Return where the platform is: flags, then ``EASEL_GATEWAY`` and ``EASEL_TOKEN``, then what `easel up` left in its home.

    Raises EngineUnavailable when none runs there, ConfigurationError when its token cannot be read, UsageError.
    """
    url = url or os.environ.get("EASEL_GATEWAY")
    token = token or os.environ.get("EASEL_TOKEN")
    folder = home_of(home)
    if url is None:
        try:
            url = str(json.loads((folder / STATE_FILE).read_text())["url"])
        except FileNotFoundError:
            raise EngineUnavailable(
                f"no platform has been started in {folder}",
                hint="start one with `easel up`, or name one: --gateway URL --token TOKEN",
            ) from None
        except (OSError, ValueError, KeyError) as error:
            raise ConfigurationError(f"{folder / STATE_FILE} cannot be read: {error}") from error
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is not a gateway's URL", hint="such as http://127.0.0.1:8500")
    if token is None:
        try:
            token = (folder / ADMIN_TOKEN_FILE).read_text().strip()
        except OSError as error:
            raise ConfigurationError(
                f"no admin token: {folder / ADMIN_TOKEN_FILE}: {error.strerror}",
                hint="give it with --token or EASEL_TOKEN; `easel up` writes it into its home",
            ) from error
    return Where(url.rstrip("/"), token)
