"""Shared by every test: blocking calls on the event loop fail the test that makes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

FIXTURES = Path(__file__).parent / "fixtures" / "comfyui"
"""Recorded behaviour of the real ComfyUI 0.3.64 (see its README)."""


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[BlockBuster]:
    """Fail a test whose easel code blocks the event loop (file access, sleep, synchronous sockets)."""
    with blockbuster_ctx("easel") as detector:
        yield detector
