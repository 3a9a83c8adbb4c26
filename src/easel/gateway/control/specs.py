"""What the control API is given, made into a specification."""

from __future__ import annotations

from typing import Protocol

from easel.gateway.control.views import Put
from easel.services.model import ServiceSpec


class SpecReader(Protocol):
    """Reads deployments."""

    async def read(
        self, body: Put, *, current: ServiceSpec | None = None
    ) -> tuple[ServiceSpec, str, list[str]]:
        """Return the specification, what was deployed word for word, and what of it is not obeyed.

        ``current`` is the specification that an update starts from. Raises InvalidSpec with every fault.
        """
