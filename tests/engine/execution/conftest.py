"""A started engine for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from easel.engine.folders import Folders
from tests.engine.execution.bench import Bench


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Start an engine with options; it is stopped after the test, and its thread has ended."""
    folders = Folders(tmp_path)
    folders.prepare()
    started: list[Bench] = []

    def begin(**options: Any) -> Bench:
        bench = Bench(folders, **options)
        started.append(bench)
        return bench

    yield begin
    for bench in started:
        bench.steering.go.open_all()
        bench.engine.stop()
        assert bench.engine.stopped


@pytest.fixture
def bench(start: Callable[..., Bench]) -> Bench:
    """A started engine."""
    return start()
