"""Plain file names in file inputs: they stay inside the engine's folders.

ComfyUI joins such a name to its input folder unchecked: ``../output/x.png`` and ``/etc/passwd`` are read as asked.
"""

from __future__ import annotations

import re

from easel.errors import InputRejected

MAX_NAME_LENGTH = 1024

_ANNOTATIONS = ("[input]", "[output]", "[temp]")
_DRIVE = re.compile(r"[A-Za-z]:")


def check_name(name: str) -> None:
    """Refuse a name that could leave the folder it is looked up in. ``"sub/x.png [output]"`` is fine.

    Raises `InputRejected`.
    """
    if len(name) > MAX_NAME_LENGTH:
        raise InputRejected(
            f"the value has {len(name)} characters and is neither a URL nor base64",
            hint="give a file name, an http(s) URL, a data: URI or base64",
        )
    if any(character < " " or character == "\x7f" for character in name):
        raise InputRejected("the file name has control characters in it")
    # ComfyUI cuts the annotation and the one character before it, whatever that is: "a/..x[output]" becomes "a/..".
    forms = [name, *(name[: -len(mark) - 1] for mark in _ANNOTATIONS if name.endswith(mark))]
    for form in forms:
        if form.startswith("/") or "\\" in form or _DRIVE.match(form):
            raise InputRejected(
                f"the file name {name!r} is not relative to the input folder", hint=_HINT
            )
        if any(part.strip() == ".." for part in form.split("/")):
            raise InputRejected(f"the file name {name!r} leaves the input folder", hint=_HINT)


_HINT = "name a file inside the engine's input folder, or send the file itself"
