"""Every setting, in one place.

Sources, strongest first: command line flags, environment (``EASEL_AGENT__PORT=9000``), a TOML file (``EASEL_CONFIG``,
else ``easel.toml`` in the working directory), the defaults below. The tree is frozen: a running process never changes it.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from easel.errors import ConfigurationError

Seconds = Annotated[float, Field(gt=0)]
Bytes = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A part of the tree: frozen, and unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class EngineSettings(Section):
    """The built-in engine (``easel engine``)."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8188, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    data_dir: Path = Path("easel-data/engine")
    """Folder of ``input``, ``output``, ``temp``, ``user`` and ``models``."""
    output_directory: Path | None = None
    """Folder of outputs instead of the one in data_dir, as ComfyUI's --output-directory."""
    temp_directory: Path | None = None
    """Folder for ``temp`` instead of data_dir, as ComfyUI's --temp-directory: ``temp`` is emptied at start."""
    packs: tuple[str, ...] = ()
    """Further node packs as ``module:registry``; ``demo`` and ``pretend`` are short names of Easel's own."""
    max_upload_bytes: Bytes = 100 * 1024 * 1024
    """Largest request body, as ComfyUI's --max-upload-size."""
    previews: bool = False
    """Send step previews (ComfyUI's --preview-method)."""
    multi_user: bool = False
    """Split settings and userdata by the ``comfy-user`` header, as ComfyUI's --multi-user."""
    cors_origin: str | None = None
    """Allow this origin and switch the Origin rule off, as ComfyUI's --enable-cors-header."""


class SupervisionSettings(Section):
    """How an agent looks after the engine process it started."""

    start_timeout: Seconds = 900
    """Longest start until ``/system_stats`` answers."""
    probe_interval: Seconds = 2
    """Pause between two looks at a running engine."""
    silent_timeout: Seconds = 30
    """An engine whose HTTP does not answer for this long is hung: it is killed and started again."""
    stall_timeout: Seconds = 600
    """A running prompt that reports nothing for this long is hung (a model load reports nothing while it lasts)."""
    stop_grace: Seconds = 10
    """Time between the polite and the forceful stop."""
    drain_timeout: Seconds = 30
    """Time a stopping agent lets running tasks end."""
    restart_backoff: Seconds = 1
    """Pause before the second restart in a row; doubled each time."""
    restart_backoff_max: Seconds = 60
    """Longest pause between two restarts."""
    start_attempts: int = Field(5, ge=1)
    """Starts in a row that end before the engine answered, after which it is given up."""
    log_lines: int = Field(200, ge=1)
    """Engine log lines kept; the last ones go into errors."""


class InputSettings(Section):
    """What a task may bring along as files (URLs, ``data:`` URIs, base64)."""

    max_bytes: Bytes = 100 * 1024 * 1024
    """Largest single file."""
    max_pixels: int = Field(100_000_000, gt=0)
    """Largest picture; a decompression bomb is refused before it is unpacked."""
    connect_timeout: Seconds = 5
    """Longest wait for a connection when fetching a URL."""
    fetch_timeout: Seconds = 60
    """Longest fetch of a URL as a whole."""
    max_redirects: int = Field(5, ge=0)
    """Redirects followed; each target is checked like the first."""
    allow_private: tuple[str, ...] = ()
    """Networks (CIDR) that may be fetched from although they are private, such as ``10.1.0.0/16``."""


class AgentSettings(Section):
    """The agent (``easel agent``)."""

    host: str = "127.0.0.1"
    """Address to listen on; ``0.0.0.0`` in a container."""
    port: int = Field(9000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=200)
    """Name of this agent among those that share a store; tasks it left unfinished are its own to settle."""
    data_dir: Path = Path("easel-data/agent")
    """Where stored outputs and, with the default store, task progress are kept."""
    store: str = "files"
    """Progress store: ``files`` (a folder in data_dir) or a SQLAlchemy URL (SQLite, MySQL/MariaDB, PostgreSQL)."""
    max_body_bytes: Bytes = 64 * 1024 * 1024
    """Largest request body."""
    max_nodes: int = Field(5000, gt=0)
    """Most nodes in one prompt."""
    max_waiting: int = Field(1000, ge=0)
    """Tasks that may wait; more are refused with 429."""
    in_engine: int = Field(2, ge=1)
    """Prompts given to the engine at a time: one running, the rest prefetched."""
    device: str | None = None
    """The engine's device, as CUDA_VISIBLE_DEVICES takes it; None leaves the choice to the engine."""
    max_attempts: int = Field(1, ge=1)
    """How often a task is started whose engine died under it."""
    task_timeout: Seconds | None = None
    """Longest execution of one task; None means no limit."""
    progress_interval: Seconds = 0.25
    """Longest time until progress is stored; what happens in between is stored together."""
    cors_origins: tuple[str, ...] = ()
    """Browser origins besides the agent's own that may call it; ``*`` allows all, without credentials."""
    join: str | None = None
    """URL of the gateway whose instance this agent is."""
    token: str | None = None
    """The token for it: a service's join token, or the instance's own."""
    token_file: Path | None = None
    """A file that holds the token, so that it does not stand in the list of processes."""
    instance: str | None = None
    """The instance's id, where the platform started the agent."""
    storage: Path | None = None
    """The service's data directory, where this machine has it: outputs are written there. None: they are sent to the gateway."""
    engine_reachable: bool | None = None
    """Whether the gateway reaches the engine by its URL; None: if the gateway's host is this machine."""
    orphan_timeout: Seconds | None = None
    """An agent whose gateway does not come back for this long ends itself, once it has nothing to do; None: never."""
    inputs: InputSettings = InputSettings()
    supervision: SupervisionSettings = SupervisionSettings()


class GatewaySettings(Section):
    """The gateway: the platform's HTTP and WebSocket edge."""

    host: str = "127.0.0.1"
    """Address to listen on; ``0.0.0.0`` for others than this machine."""
    port: int = Field(8500, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    public_url: str | None = None
    """Where callers reach the gateway, if that is not host and port: written into endpoints and links."""
    max_body_bytes: Bytes = 64 * 1024 * 1024
    """Largest body of a task or a control call. Proxied bodies are streamed and not limited here."""
    max_nodes: int = Field(5000, gt=0)
    """Most nodes in one prompt."""
    max_output_bytes: Bytes = 2 * 1024**3
    """Largest output that an agent without the service's storage may send."""
    connect_timeout: Seconds = 5
    """Longest wait for a connection to an instance; then 503."""
    answer_timeout: Seconds = 600
    """Longest wait for an instance's first byte of an answer; then 504."""
    idle_timeout: Seconds = 300
    """A client or instance that takes or sends nothing for this long in the middle of a body is dropped."""
    link_seconds: int = Field(12 * 3600, gt=0)
    """Longest validity of a signed link."""
    cors_origins: tuple[str, ...] = ()
    """Browser origins besides the gateway's own that may call it; ``*`` allows all, without credentials."""


class TaskSettings(Section):
    """The queue of tasks."""

    lease_seconds: Seconds = 30
    """How long an instance may be silent before its tasks are given to others."""
    renew_seconds: Seconds = 8
    """How often an agent renews its leases."""
    max_delivery: int = Field(5, ge=1)
    """Attempts after which a task whose instances were lost fails into the rear queue."""
    poll_interval: Seconds = 2
    """How often waiting work is looked for without having been told: what a lost wake-up costs at most."""
    sweep_interval: Seconds = 1
    """How often ended leases and passed deadlines are looked for."""
    progress_interval: Seconds = 0.5
    """Longest time until progress is stored; node borders are stored at once."""
    retention_seconds: Seconds = 7 * 24 * 3600
    """How long ended tasks and their outputs are kept."""


class FleetSettings(Section):
    """The instances of this machine."""

    cpu_slots: int = Field(2, ge=0)
    """Instances that may run at a time on a machine without GPUs."""
    devices: tuple[str, ...] = ()
    """GPUs to use, by index or UUID; none named: every GPU that NVML shows."""
    start_timeout: Seconds = 900
    """Longest start of an instance until its engine answers (a startup check overrides it)."""
    orphan_timeout: Seconds = 600
    """An agent whose gateway does not come back for this long ends itself and its engine."""
    check_interval: Seconds = 2
    """How often running instances are looked at."""
    backoff_seconds: Seconds = 1
    """Pause before an instance that ended is started again; doubled each time."""
    backoff_max_seconds: Seconds = 300
    """Longest such pause."""
    crash_loop: int = Field(5, ge=1)
    """Ends in a row after which an instance counts as crash-looping; a new revision that does pauses its update."""


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="EASEL_",
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
    )

    home: Path = Path("easel-data")
    """The platform's folder: database, admin token, logs, installations, services' folders where none was named."""
    oss_root: Path | None = None
    """Folder whose sub-folders stand for the buckets that EAS service JSONs name: ``oss://bucket/dir`` is ``<oss_root>/bucket/dir``."""
    database: str | None = None
    """SQLAlchemy URL of the platform's state: None is ``easel.db`` in ``home``; ``postgresql://…`` beyond one machine."""
    engine: EngineSettings = EngineSettings()
    agent: AgentSettings = AgentSettings()
    gateway: GatewaySettings = GatewaySettings()
    tasks: TaskSettings = TaskSettings()
    fleet: FleetSettings = FleetSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then environment, then the TOML file."""
        named = os.environ.get("EASEL_CONFIG")
        file = Path(named) if named else Path("easel.toml")
        if named and not file.is_file():
            raise ConfigurationError(f"EASEL_CONFIG names {named}, which is not a file")
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file))


def load(**flags: Any) -> Settings:
    """Read the settings; ``flags`` are nested dictionaries of what the command line gave.

    Raises ConfigurationError, naming the setting, when a value does not fit.
    """
    try:
        return Settings(**flags)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"setting {name}: {first['msg']}") from error
