"""The progress store of a joined agent: it keeps nothing, because the platform keeps all."""

from __future__ import annotations

from collections.abc import Sequence

from easel.agent.record import TaskRecord


class NoStore:
    """A `ProgressStore` that forgets."""

    async def open(self) -> None:
        """Nothing to prepare."""

    async def close(self) -> None:
        """Nothing to release."""

    async def create(self, record: TaskRecord) -> TaskRecord | None:
        """Every id is free."""
        return None

    async def save(self, record: TaskRecord) -> None:
        """Forget the record."""

    async def save_all(self, records: Sequence[TaskRecord]) -> None:
        """Forget the records."""

    async def load(self, task_id: str) -> TaskRecord | None:
        """Nothing is known."""
        return None

    async def unfinished(self, owner: str) -> list[TaskRecord]:
        """Nothing was left."""
        return []
