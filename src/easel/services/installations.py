"""Installations of ComfyUI: which there are, and which one a service means.

Each has a folder in ``<home>/comfyui/<name>/`` with a manifest; the ComfyUI itself lies there too, or somewhere else that
was only registered. One is in use: what services run that name none.
"""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path

import msgspec

from easel.errors import ConfigurationError, InstanceFailed

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MANIFEST = "easel.json"
IN_USE = "in-use"
_VERSION = re.compile(r"""__version__\s*=\s*["']([^"']+)["']""")


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """One ComfyUI that can be started."""

    name: str
    folder: Path
    """Where its ``main.py`` is."""
    python: Path
    """The interpreter of its environment."""
    version: str = ""
    ready: bool = True
    """False while it is being set up, or when that failed half way."""
    error: str = ""


_encoder = msgspec.json.Encoder(enc_hook=str)
_decoder = msgspec.json.Decoder(Installation, dec_hook=lambda kind, value: kind(value))


def version_of(folder: Path) -> str:
    """Return the version a ComfyUI says of itself, empty when it says none."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        found = _VERSION.search((folder / "comfyui_version.py").read_text())
        if found:
            return found[1]
    return ""


class Installations:
    """The installations of one platform. Every method reads or writes files: call them in a thread."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "comfyui"

    def all(self) -> list[Installation]:
        """Return every installation, by name, unfinished ones included."""
        found = []
        for manifest in sorted(self.folder.glob(f"*/{MANIFEST}")):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                found.append(_decoder.decode(manifest.read_bytes()))
        return found

    def save(self, installation: Installation) -> None:
        """Write an installation's manifest. Raises ConfigurationError."""
        if not NAME.fullmatch(installation.name):
            raise ConfigurationError(
                f"{installation.name!r} cannot be the name of an installation",
                hint="1-64 letters, digits, '.', '_' or '-'",
            )
        folder = self.folder / installation.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            new = folder / f".{MANIFEST}.new"
            new.write_bytes(msgspec.json.format(_encoder.encode(installation)))
            new.replace(folder / MANIFEST)
        except OSError as error:
            raise ConfigurationError(f"{folder} cannot be written: {error.strerror}") from error

    def in_use(self) -> str | None:
        """Return the name of the one in use; where none was chosen, the only one that is ready."""
        with contextlib.suppress(OSError):
            return (self.folder / IN_USE).read_text().strip()
        ready = [one.name for one in self.all() if one.ready]
        return ready[0] if len(ready) == 1 else None

    def use(self, name: str) -> Installation:
        """Choose the one in use. Raises ConfigurationError."""
        known = {one.name: one for one in self.all()}
        if name not in known:
            raise ConfigurationError(f"no installation is called {name!r}", hint=_known(known))
        (self.folder / IN_USE).write_text(name + "\n")
        return known[name]

    def resolve(self, wanted: str | None) -> Installation:
        """Return the installation a service means: a name, a version, a folder, or None for the one in use.

        Raises InstanceFailed (ComfyUIMissing) with what to do.
        """
        known = {one.name: one for one in self.all()}
        if wanted is not None and ("/" in wanted or wanted.startswith(".")):
            return self._folder(Path(wanted))
        name = wanted or self.in_use()
        if name is None:
            raise _missing("no ComfyUI is installed for this platform")
        found = known.get(name) or next((o for o in known.values() if o.version == name), None)
        if found is None:
            raise _missing(f"no ComfyUI installation is called {name!r}", _known(known))
        if not found.ready:
            raise _missing(f"the ComfyUI installation {name} is not complete: {found.error}")
        if not (found.folder / "main.py").is_file():
            raise _missing(f"the ComfyUI installation {name} has lost its folder {found.folder}")
        if not found.python.exists():
            raise _missing(f"the ComfyUI installation {name} has lost its Python {found.python}")
        return found

    def _folder(self, folder: Path) -> Installation:
        if not (folder / "main.py").is_file():
            raise _missing(f"{folder} is not a folder of ComfyUI: it has no main.py")
        for python in ("venv/bin/python", ".venv/bin/python"):
            if (folder / python).exists():
                return Installation(
                    name=folder.name,
                    folder=folder,
                    python=folder / python,
                    version=version_of(folder),
                )
        return Installation(
            name=folder.name,
            folder=folder,
            python=Path(sys.executable),
            version=version_of(folder),
        )


def _known(known: dict[str, Installation]) -> str:
    return f"there are: {', '.join(known)}" if known else "there is none yet"


def _missing(message: str, hint: str = "") -> InstanceFailed:
    advice = (
        "set one up with `easel comfyui install`, or name one that is there: "
        "`easel comfyui install --from FOLDER --python ITS_PYTHON`"
    )
    return InstanceFailed("ComfyUIMissing", message, hint=f"{hint}; {advice}" if hint else advice)
