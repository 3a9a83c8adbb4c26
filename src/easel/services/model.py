"""Services as they are stored: what was asked for, what is, and what happened. Times are ms since the epoch."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

Edition: TypeAlias = Literal["standard", "api", "cluster", "serverless"]

ServiceStatus: TypeAlias = Literal[
    "Creating",
    "Starting",
    "Waiting",
    "Pending",
    "Running",
    "Scaling",
    "Updating",
    "Stopping",
    "Stopped",
    "Failed",
    "Deleting",
    "Deleted",
]
"""The vendor's words (eas-and-fc.md F.1). Waiting: instances are not ready yet; Pending: no device is free."""

InstanceStatus: TypeAlias = Literal[
    "pending",  # waits for a device
    "starting",  # the runtime starts it, or its engine does not answer yet
    "ready",  # connected, and its engine takes prompts
    "unready",  # was ready; the engine restarts or the link is cut
    "backoff",  # ended by itself; started again later
    "stopping",
    "stopped",
    "failed",  # given up
]


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the service's storage: a folder of this machine, seen by its scripts as ``mount_path``."""

    mount_path: str
    source: str | None
    """The folder; None for ``empty_dir``, which is made for each instance and removed with it."""
    read_only: bool = False
    memory: bool = False
    size_limit_bytes: int | None = None


class HealthCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One check with Kubernetes' meaning (eas-and-fc.md F.7). Exactly one of path, port alone, or command is asked."""

    path: str | None = None
    port: int | None = None
    """The port as the spec names it; the instance's own port stands for the container's."""
    scheme: str = "http"
    command: list[str] = []
    initial_delay_seconds: float = 0
    period_seconds: float = 10
    timeout_seconds: float = 1
    success_threshold: int = 1
    failure_threshold: int = 3


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance runs."""

    kind: Literal["builtin", "comfyui", "command"]
    comfyui: str | None = None
    """Name of an installation (`easel comfyui list`) or a folder; None: the one in use."""
    arguments: list[str] = []
    """ComfyUI's or the built-in engine's own flags, after translation (no port, no directories)."""
    command: list[str] = []
    """For ``command``: the argument list; ``{port}`` and mount paths are filled in for each instance."""
    prepare: list[str] = []
    """Shell lines that ran before the engine in the service's script, in order."""


class ServiceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a revision wants, however it was written down."""

    name: str
    edition: Edition
    engine: EngineSpec
    instances: int = 1
    mounts: list[Mount] = []
    data_path: str | None = None
    """Mount path of the data directory (``--data-dir``)."""
    env: dict[str, str] = {}
    port: int = 8000
    """The port the spec's own texts mean by the engine."""
    startup_check: HealthCheck | None = None
    liveness_check: HealthCheck | None = None
    readiness_check: HealthCheck | None = None
    requirements: list[str] = []
    """``prepare.pythonRequirements``."""
    requirements_path: str | None = None
    gpus: int = 0
    memory_bytes: int | None = None
    """An instance that uses more is ended, with that reason."""
    max_waiting: int = 1000
    """Tasks that may wait; more get 450 (``rpc.max_queue_size``)."""
    rate_limit: float = 0
    """Requests a second that the service takes; more get 429. 0: no limit."""
    concurrency_limit: int = 0
    """Requests at a time; more get 429. 0: no limit."""
    keepalive_ms: int = 600_000
    """Longest request; then 408 (``rpc.keepalive``)."""
    max_surge: int = 1
    max_unavailable: int = 0
    termination_grace_seconds: float = 30
    restart_after_crash: bool = True
    """False is ``runtime.enable_crash_block``."""
    webui: bool = True
    web_port: int | None = None
    """A port of the gateway's machine that serves this service at the root path."""
    web_host: str | None = None
    """A host name under which the gateway's own port serves this service at the root path."""
    task_timeout_seconds: float | None = None
    retention_seconds: float | None = None
    """How long ended tasks and their outputs are kept; None: as the setting ``tasks.retention_seconds`` says."""
    autoscaler: dict[str, Any] = {}
    """As written: later editions obey it."""
    labels: dict[str, str] = {}
    token: str | None = None


class Service(msgspec.Struct, kw_only=True):
    """One service."""

    name: str
    edition: Edition
    revision: int
    """The one that is wanted."""
    stable_revision: int | None = None
    """The latest one that became ready: where a rollback goes, and what serves while an update is under way or paused."""
    instances: int
    """How many are wanted."""
    target: Literal["running", "stopped", "deleted"] = "running"
    status: ServiceStatus = "Creating"
    reason: str = ""
    message: str = ""
    restarts_asked: int = 0
    """Counts `restart` calls: instances of an older generation are replaced."""
    token: str
    join_token: str
    created: int
    updated: int


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a service's specification."""

    service: str
    number: int
    spec: ServiceSpec
    source: str
    """What was deployed, word for word (JSON)."""
    warnings: list[str] = []
    failed: bool = False
    created: int


class Instance(msgspec.Struct, kw_only=True):
    """One instance: what is wanted of it and what it is."""

    id: str
    service: str
    revision: int
    generation: int = 0
    runtime: str = "local"
    """``local``, or ``joined`` for an agent that came by itself."""
    target: Literal["running", "stopped"] = "running"
    status: InstanceStatus = "pending"
    reason: str = ""
    message: str = ""
    device: str | None = None
    handle: dict[str, Any] = {}
    """The runtime's checkpoint: enough to find, watch and stop what was started."""
    token_hash: str = ""
    """SHA-256 of the agent's token."""
    restarts: int = 0
    last_state: str = ""
    """Why it ended the last time, such as OOMKilled."""
    not_before: int = 0
    """With backoff: when to start again."""
    created: int
    started: int | None = None
    ready_at: int | None = None
    updated: int


class ServiceEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a service."""

    seq: int = 0
    service: str
    instance: str | None = None
    at: int
    type: Literal["Normal", "Warning"] = "Normal"
    reason: str
    """One word in CamelCase: Deployed, InstanceReady, BackOff, OOMKilled …"""
    message: str
    advice: str = ""
    log: list[str] = []
    """The last log lines, where they say why."""
