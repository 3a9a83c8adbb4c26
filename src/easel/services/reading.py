"""Reading a document of somebody else's so that nothing in it is swallowed: every value is taken, warned of, or a fault.

A `Section` is an object of the document; each of its methods takes one key. What was not taken when the section is closed
becomes a warning with its path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Document:
    """What was found in a document besides its values."""

    def __init__(self) -> None:
        self.faults: list[tuple[str, str]] = []
        self.warnings: list[str] = []

    def fault(self, path: str, message: str) -> None:
        """Note what is wrong at a path."""
        self.faults.append((path, message))

    def warn(self, path: str, message: str) -> None:
        """Note what is not obeyed at a path."""
        self.warnings.append(f"{path}: {message}")


UNKNOWN = "is not understood here, and not obeyed"


class Section:
    """One object of a document."""

    def __init__(self, document: Document, path: str, value: dict[str, Any]) -> None:
        self.document = document
        self.path = path
        self._value = value
        self._taken: set[str] = set()

    def at(self, key: str) -> str:
        """Return the path of a key."""
        return f"{self.path}.{key}" if self.path else key

    def has(self, key: str) -> bool:
        """Tell whether a key is there and not null."""
        return self._value.get(key) is not None

    def peek(self, key: str) -> Any:
        """Look at a value without taking it."""
        return self._value.get(key)

    def fault(self, key: str, message: str) -> None:
        """Note what is wrong with a key."""
        self.document.fault(self.at(key), message)

    def warn(self, key: str, message: str) -> None:
        """Note what of a key is not obeyed."""
        self.document.warn(self.at(key), message)

    def _take(self, key: str) -> Any:
        self._taken.add(key)
        return self._value.get(key)

    def text(self, key: str, *, pattern: str | None = None, words: str = "") -> str | None:
        """Take a string; ``pattern`` must match it as a whole, ``words`` say how it should be."""
        value = self._take(key)
        if value is None:
            return None
        if not isinstance(value, str):
            self.fault(key, "must be a string")
            return None
        if pattern is not None and not re.fullmatch(pattern, value):
            self.fault(key, words or f"must match {pattern}")
            return None
        return value

    def number(
        self, key: str, *, least: float = 0, most: float = 1e12, whole: bool = False
    ) -> float | None:
        """Take a number within bounds."""
        value = self._take(key)
        if value is None:
            return None
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        if not fits or (whole and int(value) != value) or not least <= value <= most:
            kind = "a whole number" if whole else "a number"
            self.fault(key, f"must be {kind} from {least:g} to {most:g}")
            return None
        return float(value)

    def whole(self, key: str, *, least: int = 0, most: int = 10**12) -> int | None:
        """Take a whole number within bounds."""
        found = self.number(key, least=least, most=most, whole=True)
        return int(found) if found is not None else None

    def flag(self, key: str) -> bool | None:
        """Take true or false."""
        value = self._take(key)
        if value is None or isinstance(value, bool):
            return value
        self.fault(key, "must be true or false")
        return None

    def texts(self, key: str) -> list[str]:
        """Take a list of strings."""
        value = self._take(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self.fault(key, "must be a list of strings")
            return []
        for index, one in enumerate(value):
            if not isinstance(one, str):
                self.document.fault(f"{self.at(key)}[{index}]", "must be a string")
        return [one for one in value if isinstance(one, str)]

    def mapping(self, key: str) -> dict[str, str]:
        """Take an object of strings."""
        value = self._take(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.fault(key, "must be an object of strings")
            return {}
        for name, one in value.items():
            if not isinstance(one, str):
                self.document.fault(f"{self.at(key)}.{name}", "must be a string")
        return {name: one for name, one in value.items() if isinstance(one, str)}

    def raw(self, key: str) -> dict[str, Any]:
        """Take an object as it is."""
        value = self._take(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.fault(key, "must be an object")
            return {}
        return value

    @contextmanager
    def section(self, key: str) -> Iterator[Section]:
        """Take an object, closed with the block; an empty one where there is none."""
        value = self._take(key)
        with opened(self.document, self.at(key), {} if value is None else value) as found:
            yield found

    @contextmanager
    def sections(self, key: str) -> Iterator[list[Section]]:
        """Take a list of objects, closed with the block."""
        value = self._take(key)
        if value is not None and not isinstance(value, list):
            self.fault(key, "must be a list")
            value = None
        found = []
        for index, one in enumerate(value or []):
            path = f"{self.at(key)}[{index}]"
            if isinstance(one, dict):
                found.append(Section(self.document, path, one))
            else:
                self.document.fault(path, "must be an object")
        yield found
        for one in found:
            one.close()

    def ignored(self, key: str, why: str) -> None:
        """Take a key that is known and not obeyed."""
        if self._take(key) is not None:
            self.warn(key, why)

    def drop(self, why: str) -> None:
        """Take everything that is left, for one reason."""
        for key in self._value:
            if key not in self._taken:
                self.ignored(key, why)

    def close(self) -> None:
        """Warn of what nobody took."""
        for key, value in self._value.items():
            if key not in self._taken and value is not None:
                self.warn(key, UNKNOWN)


@contextmanager
def opened(document: Document, path: str, value: Any) -> Iterator[Section]:
    """Give an object of a document as a section, closed with the block."""
    if not isinstance(value, dict):
        document.fault(path, "must be an object")
        value = {}
    section = Section(document, path, value)
    yield section
    section.close()
