"""An agent becomes an instance of a platform."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import aiohttp

from easel.agent.joining.client import LinkClient
from easel.agent.joining.desk import Desk
from easel.agent.joining.engine_watch import EngineWatch
from easel.agent.joining.joining import Joining
from easel.agent.joining.outbox import Outbox
from easel.agent.joining.uploads import Uploads
from easel.agent.link import EngineLink
from easel.agent.runner import Runner
from easel.agent.tasks import Tasks
from easel.storage.outputs import OutputFiles


def join(
    joining: Joining,
    http: aiohttp.ClientSession,
    url: str,
    *,
    tasks: Tasks,
    link: EngineLink,
    outputs: OutputFiles,
    engine: Runner,
    say: Callable[[str], None],
) -> LinkClient:
    """Return the client, not started yet, that makes the agent at ``url`` an instance."""
    if joining.engine_url is not None:
        joining = dataclasses.replace(joining, agent_url=url)
    outbox = Outbox()
    watch = EngineWatch(link, outbox)
    discard = None if joining.shares_storage else outputs.delete
    desk = Desk(tasks, outbox, engine_ready=watch.ready, discard=discard)
    if not joining.shares_storage:
        engine.deliver = Uploads(http, joining.url, outputs, desk.lease_of)
    return LinkClient(
        joining,
        http,
        desk=desk,
        outbox=outbox,
        link=link,
        watch=watch,
        on_welcome=lambda welcome: engine.limit(
            welcome.task_timeout, "the service's longest execution of a task"
        ),
        say=say,
    )
