"""What the control API takes and answers about services."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from easel.services.description import Description
from easel.services.model import Instance

ServiceName = Annotated[str, Field(pattern=r"^[a-z0-9_]{3,63}$")]
"""3-63 lower-case letters, digits or ``_`` (eas-and-fc.md A.3)."""


class Scenario(BaseModel):
    """A deployment in a few words; what is left out of an update stays as it is."""

    model_config = ConfigDict(extra="forbid")

    name: ServiceName
    edition: Literal["standard", "api"] | None = None
    storage: str | None = None
    """The data directory, an absolute path on the platform's machine."""
    engine: str | None = None
    """``comfyui``, ``comfyui:NAME``, ``comfyui:FOLDER`` or ``builtin``."""
    instances: int | None = Field(None, ge=0, le=1000)
    packs: list[str] | None = None
    env: dict[str, str] | None = None
    memory: str | None = None
    """Most memory of an instance: bytes, or with K, M, G."""
    web_port: int | None = Field(None, ge=1, le=65535)


class Put(BaseModel):
    """Exactly one of scenario and eas."""

    model_config = ConfigDict(extra="forbid")

    scenario: Scenario | None = None
    eas: dict[str, Any] | str | None = None
    """An EAS service JSON: the object, or its text as it was written."""
    name: ServiceName | None = None
    """With ``eas``: another name than the JSON's."""


class Scale(BaseModel):
    """How many instances."""

    instances: int = Field(ge=0, le=1000)


class Rollback(BaseModel):
    """To which revision; null: the latest that was ready."""

    revision: int | None = Field(None, ge=1)


class NewToken(BaseModel):
    """A token of the operator's own; null draws one."""

    token: str | None = Field(None, min_length=16, max_length=256, pattern=r"^[\x21-\x7e]+$")


class LinkRequest(BaseModel):
    """How long a signed link is valid."""

    seconds: int | None = Field(None, ge=1)


class Invocation(BaseModel):
    """One request to a service."""

    model_config = ConfigDict(extra="forbid")

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    path: str = Field("/", pattern="^/")
    headers: dict[str, str] = {}
    body: Any = None
    """Sent as JSON; a string is sent as it is."""


class CheckRequest(BaseModel):
    """A workflow in API format."""

    workflow: Any


class InstanceView(BaseModel):
    """One instance."""

    id: str
    status: str
    reason: str
    message: str
    revision: int
    runtime: str
    device: str | None
    restarts: int
    last_state: str
    created: int
    started: int | None
    ready_at: int | None

    @classmethod
    def of(cls, instance: Instance) -> InstanceView:
        """Show an instance."""
        return cls(**{name: getattr(instance, name) for name in cls.model_fields})


class ServiceView(BaseModel):
    """One service. Times are ms since the epoch."""

    name: str
    edition: str
    status: str
    reason: str
    message: str
    revision: int
    latest_revision: int
    stable_revision: int | None
    instances_wanted: int
    total_instances: int
    pending_instances: int
    running_instances: int
    restarts: int
    instances: list[InstanceView]
    warnings: list[str]
    webui: bool
    endpoint: str
    created: int
    updated: int
    spec: dict[str, Any]

    @classmethod
    def of(cls, found: Description, endpoint: str) -> ServiceView:
        """Show a service."""
        return cls(
            name=found.name,
            edition=found.edition,
            status=found.status,
            reason=found.reason,
            message=found.message,
            revision=found.revision,
            latest_revision=found.latest_revision,
            stable_revision=found.stable_revision,
            instances_wanted=found.wanted,
            total_instances=found.total,
            pending_instances=found.pending,
            running_instances=found.running,
            restarts=found.restarts,
            instances=[InstanceView.of(one) for one in found.instances],
            warnings=found.warnings,
            webui=found.spec.webui,
            endpoint=endpoint,
            created=found.created,
            updated=found.updated,
            spec=msgspec.to_builtins(found.spec),
        )


class RevisionView(BaseModel):
    """One version of a service."""

    number: int
    created: int
    failed: bool
    warnings: list[str]
    spec: dict[str, Any]


class RevisionList(BaseModel):
    """A service's revisions, oldest first."""

    revisions: list[RevisionView]


class ServicePage(BaseModel):
    """Some services, by name."""

    services: list[ServiceView]
    next: str | None
    """Give it as ``after`` for the next page; null after the last one."""


class InstanceList(BaseModel):
    """A service's instances, oldest first."""

    instances: list[InstanceView]


class EventView(BaseModel):
    """Something that happened to a service."""

    seq: int
    instance: str | None
    at: int
    type: str
    reason: str
    message: str
    advice: str
    log: list[str]


class EventList(BaseModel):
    """Events, oldest first."""

    events: list[EventView]


class InstanceLog(BaseModel):
    """The last lines of one instance."""

    instance: str
    lines: list[str]


class LogList(BaseModel):
    """Logs by instance."""

    instances: list[InstanceLog]


class Example(BaseModel):
    """A call to paste."""

    title: str
    text: str


class Endpoint(BaseModel):
    """How a service is called (the vendor's "invocation information")."""

    endpoint: str
    token: str
    webui: str | None
    """The WebUI's address for those who have the token."""
    examples: list[Example]


class Token(BaseModel):
    """A service's token."""

    token: str


class JoinToken(BaseModel):
    """What makes an agent an instance of a service."""

    token: str
    command: str


class SignedLink(BaseModel):
    """A link that needs no login."""

    url: str
    expires: int
    """ms since the epoch"""


class Said(BaseModel):
    """What was done, in words."""

    message: str


class Invoked(BaseModel):
    """A service's answer."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    milliseconds: float
    json_: Any = Field(None, alias="json")
    """The body where it is JSON."""
    text: str | None = None
    """The body where it is another text."""
    body_base64: str | None = None
    """The body where it is neither."""
    truncated: bool = False
    """Whether the body went on beyond what is shown."""


class ModelFolder(BaseModel):
    """The models of one folder."""

    folder: str
    files: list[str]
    loaders: list[str]
    """Loader inputs that read the folder, as ``Class.input``."""


class ModelList(BaseModel):
    """A service's models."""

    folders: list[ModelFolder]


class NodeView(BaseModel):
    """A node class."""

    class_type: str
    display_name: str
    category: str
    description: str
    output_node: bool
    python_module: str


class NodeList(BaseModel):
    """Node classes, by name."""

    nodes: list[NodeView]


class Missing(BaseModel):
    """Something a workflow needs and the service lacks."""

    kind: str
    node_id: str
    class_type: str
    input: str | None
    value: str | None
    folder: str | None
    message: str
    advice: str


class Checked(BaseModel):
    """What a workflow misses; nothing when it can run."""

    missing: list[Missing]
