"""Text nodes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from easel.engine.node import Input, NodeContext, Output, Registry
from easel.engine.nodes.declare import choice, flag, integer

registry = Registry()

_TEXT = Input("STRING", {"multiline": True})
_STRING = Output("STRING")
_FLAGS = {"case_insensitive": flag(True), "multiline": flag(False), "dotall": flag(False)}

_Run = Callable[..., tuple[Any, ...]]


def _node(
    name: str,
    label: str,
    required: Mapping[str, Input],
    output: Output = _STRING,
    optional: Mapping[str, Input] | None = None,
) -> Callable[[_Run], Any]:
    return registry.node(
        name,
        display_name=label,
        category="utils/string",
        python_module="comfy_extras.nodes_string",
        required=required,
        optional=optional or {},
        outputs=(output,),
        style="v3",
    )


@_node(
    "StringConcatenate",
    "Concatenate",
    {
        "string_a": _TEXT,
        "string_b": _TEXT,
        "delimiter": Input("STRING", {"default": "", "multiline": False}),
    },
)
def concatenate(
    _context: NodeContext, string_a: str, string_b: str, delimiter: str = ""
) -> tuple[str]:
    """Join two texts."""
    return (f"{string_a}{delimiter}{string_b}",)


@_node(
    "StringSubstring",
    "Substring",
    {"string": _TEXT, "start": Input("INT", {}), "end": Input("INT", {})},
)
def substring(_context: NodeContext, string: str, start: int, end: int) -> tuple[str]:
    """Cut out a piece; negative positions count from the end."""
    return (string[start:end],)


@_node("StringLength", "Length", {"string": _TEXT}, Output("INT", "length"))
def length(_context: NodeContext, string: str) -> tuple[int]:
    """Count the characters."""
    return (len(string),)


_CASES: Mapping[str, Callable[[str], str]] = {
    "UPPERCASE": str.upper,
    "lowercase": str.lower,
    "Capitalize": str.capitalize,
    "Title Case": str.title,
}


@_node("CaseConverter", "Case Converter", {"string": _TEXT, "mode": choice(*_CASES)})
def convert_case(_context: NodeContext, string: str, mode: str) -> tuple[str]:
    """Change upper and lower case."""
    return (_CASES[mode](string),)


_TRIMS: Mapping[str, Callable[[str], str]] = {
    "Both": str.strip,
    "Left": str.lstrip,
    "Right": str.rstrip,
}


@_node("StringTrim", "Trim", {"string": _TEXT, "mode": choice(*_TRIMS)})
def trim(_context: NodeContext, string: str, mode: str) -> tuple[str]:
    """Take white space away."""
    return (_TRIMS[mode](string),)


@_node("StringReplace", "Replace", {"string": _TEXT, "find": _TEXT, "replace": _TEXT})
def replace_text(_context: NodeContext, string: str, find: str, replace: str) -> tuple[str]:
    """Replace every occurrence."""
    return (string.replace(find, replace),)


@_node(
    "StringContains",
    "Contains",
    {"string": _TEXT, "substring": _TEXT, "case_sensitive": flag(True)},
    Output("BOOLEAN", "contains"),
)
def contains(
    _context: NodeContext, string: str, substring: str, case_sensitive: bool = True
) -> tuple[bool]:
    """Look for a piece of text."""
    if case_sensitive:
        return (substring in string,)
    return (substring.lower() in string.lower(),)


_COMPARISONS: Mapping[str, Callable[[str, str], bool]] = {
    "Starts With": str.startswith,
    "Ends With": str.endswith,
    "Equal": str.__eq__,
}


@_node(
    "StringCompare",
    "Compare",
    {
        "string_a": _TEXT,
        "string_b": _TEXT,
        "mode": choice(*_COMPARISONS),
        "case_sensitive": flag(True),
    },
    Output("BOOLEAN"),
)
def compare(
    _context: NodeContext, string_a: str, string_b: str, mode: str, case_sensitive: bool = True
) -> tuple[bool]:
    """Compare two texts."""
    if not case_sensitive:
        string_a, string_b = string_a.lower(), string_b.lower()
    return (_COMPARISONS[mode](string_a, string_b),)


def _compiled(
    pattern: str, case_insensitive: bool, multiline: bool, dotall: bool
) -> re.Pattern[str]:
    flags = re.NOFLAG
    if case_insensitive:
        flags |= re.IGNORECASE
    if multiline:
        flags |= re.MULTILINE
    if dotall:
        flags |= re.DOTALL
    return re.compile(pattern, flags)


@_node(
    "RegexMatch",
    "Regex Match",
    {"string": _TEXT, "regex_pattern": _TEXT, **_FLAGS},
    Output("BOOLEAN", "matches"),
)
def regex_match(
    _context: NodeContext,
    string: str,
    regex_pattern: str,
    case_insensitive: bool = True,
    multiline: bool = False,
    dotall: bool = False,
) -> tuple[bool]:
    """Tell whether a pattern occurs; a faulty pattern occurs nowhere."""
    try:
        pattern = _compiled(regex_pattern, case_insensitive, multiline, dotall)
    except re.error:
        return (False,)
    return (pattern.search(string) is not None,)


def _first(found: re.Match[str] | None, group: int) -> str:
    # A group that took no part in the match is None here, and None is what ComfyUI hands on.
    return "" if found is None or len(found.groups()) < group else found[group]


@_node(
    "RegexExtract",
    "Regex Extract",
    {
        "string": _TEXT,
        "regex_pattern": _TEXT,
        "mode": choice("First Match", "All Matches", "First Group", "All Groups"),
        **_FLAGS,
        "group_index": integer(1, 0, 100),
    },
)
def regex_extract(
    _context: NodeContext,
    *,
    string: str,
    regex_pattern: str,
    mode: str,
    case_insensitive: bool = True,
    multiline: bool = False,
    dotall: bool = False,
    group_index: int = 1,
) -> tuple[str]:
    """Take out what a pattern finds, several finds on lines of their own; nothing for a faulty pattern.

    "All Matches" of a pattern with groups gives each match's first group, as ComfyUI does.
    """
    try:
        pattern = _compiled(regex_pattern, case_insensitive, multiline, dotall)
    except re.error:
        return ("",)
    if mode == "First Match":
        return (_first(pattern.search(string), 0),)
    if mode == "First Group":
        return (_first(pattern.search(string), group_index),)
    if mode == "All Matches":
        group = 1 if pattern.groups else 0
        return ("\n".join(match[group] or "" for match in pattern.finditer(string)),)
    if not 0 < pattern.groups >= group_index:
        return ("",)
    return ("\n".join(match[group_index] for match in pattern.finditer(string)),)


@_node(
    "RegexReplace",
    "Regex Replace",
    {"string": _TEXT, "regex_pattern": _TEXT, "replace": _TEXT},
    optional={**_FLAGS, "count": integer(0, 0, 100)},
)
def regex_replace(
    _context: NodeContext,
    *,
    string: str,
    regex_pattern: str,
    replace: str,
    case_insensitive: bool = True,
    multiline: bool = False,
    dotall: bool = False,
    count: int = 0,
) -> tuple[str]:
    """Replace what a pattern finds.

    Raises re.error for a faulty pattern.
    """
    pattern = _compiled(regex_pattern, case_insensitive, multiline, dotall)
    return (pattern.sub(replace, string, count=count),)
