"""The real ComfyUI's node declarations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import FIXTURES


@pytest.fixture(scope="session")
def object_info() -> Any:
    return json.loads((FIXTURES / "object_info.json").read_text())
