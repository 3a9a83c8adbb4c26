"""Stored outputs, as the agent's modules import them."""

from __future__ import annotations

from easel.storage.outputs import OutputFiles, StoredFile, output_url, value_entry

__all__ = ["OutputFiles", "StoredFile", "output_url", "value_entry"]
