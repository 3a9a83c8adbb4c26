"""Progress stores: where task records are kept. `open_store` picks one by the settings."""

from __future__ import annotations

from easel.agent.record import ProgressStore
from easel.errors import ConfigurationError
from easel.settings import AgentSettings

__all__ = ["open_store"]


def open_store(settings: AgentSettings) -> ProgressStore:
    """Return the store that ``settings.store`` names, not opened yet.

    ``files`` keeps records under ``data_dir/tasks``; a SQLAlchemy URL keeps them in a database. Raises
    ConfigurationError for anything else and for an unknown kind of database; the store's `open` raises it for a missing
    driver.
    """
    if settings.store == "files":
        from easel.agent.store.files import FileStore  # noqa: PLC0415

        return FileStore(settings.data_dir / "tasks")
    if "://" in settings.store:
        # SQLAlchemy costs some 20 MB of memory: only agents that use a database pay it.
        from easel.agent.store.sql import SqlStore  # noqa: PLC0415

        return SqlStore(settings.store)
    raise ConfigurationError(
        f"unknown progress store {settings.store!r}",
        hint='use "files", or a database URL such as sqlite:///tasks.db, '
        "mysql://user:password@host/database or postgresql://user:password@host/database",
    )
