"""A stable hash of what was submitted: the same id with another signature is a conflict."""

from __future__ import annotations

import hashlib

import msgspec

from easel.workflow.parse import Options
from easel.workflow.types import Prompt

_encoder = msgspec.json.Encoder(order="sorted")


def signature(prompt: Prompt, options: Options | None = None) -> str:
    """Return 64 hexadecimal digits; the order of keys does not matter, every value does (``1`` and ``1.0`` differ).

    Take it of the prompt as it was parsed, before seeds are drawn and files are fetched.
    """
    chosen = options or Options()
    body = _encoder.encode([prompt, chosen.output_base64, chosen.extra_data])
    return hashlib.sha256(body).hexdigest()
