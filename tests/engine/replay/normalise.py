"""What may differ between the recording and this engine, and nothing else.

- ids, times and sizes of generated files; random parts of temp file names; the file counter of a folder that was not empty
- absolute paths, tracebacks, tooltips and descriptions (prose), versions and memory figures
- the order of sets: cached nodes, executed nodes, directory listings
- how a tensor is printed
"""

from __future__ import annotations

import json
import re
from typing import Any

PROSE = frozenset({"tooltip", "description", "output_tooltips"})
TIMES = frozenset({"timestamp", "modified", "created", "t"})
SETS = frozenset({"nodes", "executed", "current_outputs", "dependent_outputs"})
TEMP_NAME = re.compile(r"ComfyUI_temp_[a-z]{5}_\d{5}_")
COUNTER = re.compile(r"_\d{5}_\.(png|webp)")
FOLDER = re.compile(r"(/[\w.~@-]+)+/(?=(input|output|temp|models|custom_nodes|user)\b)")
TENSOR = re.compile(r"(tensor\()?\[\[|array\(|<|\{'samples'")
SECONDS = re.compile(r"executed in \d+\.\d\d seconds")
WHERE = re.compile(r"(?m)(: )/\S*?(?=$|/(data|input|output)\b)")
STATS = {"ram_total", "ram_free", "vram_total", "vram_free", "torch_vram_total", "torch_vram_free"}
OWN = {"python_version", "pytorch_version", "argv", "installed_templates_version"}
MARKS = {"engine", "easel_version"}


def value(found: Any, key: str = "") -> Any:
    """Return a JSON value without what may differ."""
    if isinstance(found, dict):
        return {
            name: value(child, name)
            for name, child in found.items()
            if name not in PROSE and name not in MARKS
        }
    if key == "traceback":
        return ["..."] if found else []
    if key in STATS or key in OWN:
        return type(found).__name__
    if key in SETS and isinstance(found, list):
        return sorted(found, key=str)
    if isinstance(found, list):
        return [value(child) for child in found]
    if key in TIMES and isinstance(found, int | float | str):
        return "time"
    if key == "exception_message":
        return WHERE.sub(r"\1", text(found)).strip()
    return text(found) if isinstance(found, str) else found


def without(found: Any, keys: frozenset[str]) -> Any:
    """Return a JSON value without some keys, wherever they are."""
    if isinstance(found, dict):
        return {name: without(child, keys) for name, child in found.items() if name not in keys}
    if isinstance(found, list):
        return [without(child, keys) for child in found]
    return found


def text(found: str) -> str:
    """Return a text without random names and folders."""
    found = TEMP_NAME.sub("ComfyUI_temp_?_00000_", found)
    if TENSOR.match(found):
        return "tensor"
    found = SECONDS.sub("executed in 0 seconds", found)
    found = COUNTER.sub(r"_00000_.\1", found)
    return FOLDER.sub("/data/", found)


def renamed(found: Any, names: dict[str, str]) -> Any:
    """Replace ids wherever they stand, in keys, too."""
    if not names:
        return found
    pattern = re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))
    return json.loads(pattern.sub(lambda match: names[match[0]], json.dumps(found)))


def message(kind: str, data: Any) -> tuple[str, Any]:
    """Return an event without what may differ. Of a frame its type, format and metadata remain."""
    if kind == "binary":
        return kind, {
            key: data.get(key) for key in ("event", "image_type", "metadata", "node_id", "text")
        }
    if kind == "progress_state":
        # the nodes by id; within a state everything is compared
        return kind, {**data, "nodes": {n: value(s) for n, s in data["nodes"].items()}}
    cleaned = value(data)
    if "sid" in cleaned and re.fullmatch("[0-9a-f]{32}", cleaned["sid"]):
        cleaned["sid"] = "id"
    return kind, cleaned
