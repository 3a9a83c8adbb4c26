"""What the control API is given, made into a specification."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from easel.errors import InvalidSpec
from easel.gateway.control.views import Put
from easel.listening import is_free
from easel.services.eas import read_eas
from easel.services.eas_storage import missing_mounts
from easel.services.model import ServiceSpec
from easel.services.scenario import Wishes, scenario


class SpecReader:
    """Reads deployments.

    ``oss_root`` is the folder whose sub-folders stand for the vendor's buckets, ``host`` the address that services' own ports
    are listened on.
    """

    def __init__(self, oss_root: Path | None, host: str) -> None:
        self._oss_root = oss_root
        self._host = host

    async def read(
        self, body: Put, *, current: ServiceSpec | None = None
    ) -> tuple[ServiceSpec, str, list[str]]:
        """Return the specification, what was deployed word for word, and what of it is not obeyed.

        ``current`` is the specification that an update starts from. Raises InvalidSpec with every fault.
        """
        if (body.scenario is None) == (body.eas is None):
            raise InvalidSpec([("", "give a scenario or an EAS service JSON, one of them")])
        if body.scenario is not None:
            if body.name is not None:
                raise InvalidSpec([("name", "goes with eas; a scenario has its own")])
            wishes = Wishes(**body.scenario.model_dump())
            spec, warnings = scenario(wishes, current), _trouble(wishes)
            source = body.scenario.model_dump_json(exclude_none=True)
        else:
            assert body.eas is not None
            name = body.name or (current.name if current is not None else None)
            spec, warnings = read_eas(body.eas, oss_root=self._oss_root, name=name)
            source = (
                body.eas if isinstance(body.eas, str) else msgspec.json.encode(body.eas).decode()
            )
        before = current.web_port if current is not None else None
        if spec.web_port not in (None, before):
            free = await asyncio.to_thread(is_free, self._host, spec.web_port)
            if not free:
                raise InvalidSpec([("web_port", f"port {spec.web_port} is in use on {self._host}")])
        warnings += [
            f"{path}: {words}; the service fails until it is"
            for path, words in await asyncio.to_thread(missing_mounts, spec)
        ]
        return spec, source, warnings


def _trouble(wishes: Wishes) -> list[str]:
    """Say what is better known before than after."""
    if wishes.storage is None and wishes.edition is not None:
        return ["storage: none was named; the service keeps its files in the platform's home"]
    return []
