"""``python -m easel``: the ``easel`` command."""

from __future__ import annotations

import sys

from easel.cli import main

sys.exit(main())
