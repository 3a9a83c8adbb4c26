"""Every class we implement has the real one's `/object_info` entry, but for prose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from easel.engine.folders import Folders
from easel.engine.node import NodeClass, Registry
from easel.engine.nodes import pretend, registry
from easel.engine.object_info import class_info
from tests.conftest import FIXTURES

RECORDED: dict[str, Any] = json.loads((FIXTURES / "object_info.json").read_text())
PROSE = {"tooltip", "description", "output_tooltips"}

PACKS: list[Registry] = [registry, pretend.registry]
CLASSES = [node_class for pack in PACKS for node_class in pack if node_class.name in RECORDED]


def without_prose(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_prose(member) for key, member in value.items() if key not in PROSE}
    if isinstance(value, list):
        return [without_prose(member) for member in value]
    return value


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """The files that lay in the recorded one's folders."""
    folders = Folders(tmp_path)
    folders.prepare()
    (folders.input / "example.png").touch()
    checkpoints = folders.models / "checkpoints"
    checkpoints.mkdir()
    for size in ("full", "tiny-kl", "tiny"):
        (checkpoints / f"random-sd15-{size}.safetensors").touch()
    return folders


@pytest.mark.parametrize("node_class", CLASSES, ids=lambda node_class: node_class.name)
def test_entry_is_the_recorded_one(node_class: NodeClass, folders: Folders) -> None:
    ours = without_prose(class_info(node_class, folders))
    theirs = without_prose(RECORDED[node_class.name])
    # As text: 1 and 1.0, True and 1 are different things to a front end. Input order matters to it too.
    assert list(ours["input"]["required"]) == list(theirs["input"]["required"])
    assert json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)


def test_every_class_of_the_base_pack_is_a_real_one() -> None:
    assert {node_class.name for node_class in registry} <= RECORDED.keys()
