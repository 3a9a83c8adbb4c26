"""Where state lives: tables, migrations, and connections to SQLite or PostgreSQL."""

from __future__ import annotations

from easel.database.opening import open_database
from easel.database.port import Database

__all__ = ["Database", "open_database"]
