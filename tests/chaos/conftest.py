"""Chaos over both databases."""

from __future__ import annotations

from tests.contract.conftest import postgresql

__all__ = ["postgresql"]
