"""The vendor's service JSON, read as it is (eas-and-fc.md A.3): `read_eas`.

What is understood is obeyed, what is not is named in a warning with its path, every fault is found at once.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from easel.errors import InvalidSpec
from easel.services.eas_checks import read_check
from easel.services.eas_storage import read_mounts
from easel.services.model import Edition, EngineSpec, ServiceSpec
from easel.services.reading import Document, Section, opened
from easel.services.script import read_script

NAME = r"[a-z0-9_]{3,63}"
RESERVED = (8080, 9090)
MEGABYTE = 1024 * 1024
TYPES: dict[str, Edition] = {"Async": "api", "Standard": "standard"}
UNKNOWN_TYPE = "only Standard and Async services are run here; it is deployed as standard"
CLOUD = "belongs to the vendor's cloud; instances run on this platform's machines"
IMAGE_VERSION = re.compile(r"comfyui:(\d+(?:\.\d+)+)")


def read_eas(
    source: bytes | str | dict[str, Any], *, oss_root: Path | None = None, name: str | None = None
) -> tuple[ServiceSpec, list[str]]:
    """Read a service JSON: its specification, and what of it is not obeyed.

    ``oss_root`` is the folder whose sub-folders stand for buckets; ``name`` replaces the JSON's. Raises InvalidSpec with every
    fault and its path.
    """
    value = source if isinstance(source, dict) else _parsed(source)
    document = Document()
    with opened(document, "", value) as root:
        fields = _service(root, document, oss_root, name)
    if document.faults:
        raise InvalidSpec(document.faults)
    return ServiceSpec(**fields), document.warnings


def _parsed(source: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(source)
    except (ValueError, RecursionError) as error:
        where = ""
        if isinstance(error, json.JSONDecodeError):
            where = f" at line {error.lineno}, column {error.colno}"
            raise InvalidSpec([("", f"not JSON: {error.msg}{where}")]) from error
        raise InvalidSpec([("", f"not JSON: {error}")]) from error
    if not isinstance(value, dict):
        raise InvalidSpec([("", "the service must be a JSON object")])
    return value


def _service(
    root: Section, document: Document, oss_root: Path | None, name: str | None
) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    with root.section("metadata") as metadata:
        _metadata(metadata, fields, name)
    fields["mounts"] = read_mounts(root, document, oss_root)
    with root.sections("containers") as containers:
        if not containers:
            root.fault("containers", "names no container; one with a script or command is needed")
        for index, container in enumerate(containers):
            if index == 0:
                _container(container, fields)
            else:
                container.drop("an instance is one ComfyUI; only the first container is run")
    with root.section("networking") as networking:
        _networking(networking, fields)
    fields["autoscaler"] = _autoscaler(root)
    with root.section("runtime") as runtime:
        fields["restart_after_crash"] = not runtime.flag("enable_crash_block")
    token = root.text(
        "token", pattern=r"[\x21-\x7e]{1,256}", words="must be printable, without spaces"
    )
    fields["token"] = token
    fields["labels"] = root.mapping("labels")
    for key in ("cloud", "features", "dockerAuth", "sinker"):
        root.ignored(key, CLOUD)
    return fields


def _metadata(metadata: Section, fields: dict[str, Any], name: str | None) -> None:
    words = "must be 3-63 lower-case letters, digits or _"
    given = metadata.text("name", pattern=NAME, words=words)
    if name is not None and given is not None and name != given:
        metadata.warn("name", f"the service is called {name}, as was asked for")
    if name is None and not metadata.has("name"):
        metadata.fault("name", "is missing")
    fields["name"] = name or given or ""
    kind = metadata.text("type")
    if kind is not None and kind not in TYPES:
        metadata.warn("type", UNKNOWN_TYPE)
    edition = fields["edition"] = TYPES.get(kind or "Standard", "standard")
    count = metadata.whole("instance", most=1000)
    fields["instances"] = 1 if count is None else count
    if edition == "standard" and fields["instances"] != 1:
        metadata.fault(
            "instance",
            f"is {count}: a standard service has exactly 1, its state lives in that one ComfyUI; "
            'metadata.type "Async" has many',
        )
    gpus = metadata.whole("gpu", most=64)
    fields["gpus"] = gpus or 0
    if gpus is not None and gpus > 1:
        metadata.warn("gpu", f"is {gpus}: an instance is one ComfyUI on one GPU; one is used")
    memory = metadata.number("memory", least=1)
    if memory is not None:
        fields["memory_bytes"] = int(memory * MEGABYTE)
    metadata.ignored("cpu", "processes of this machine share its cores")
    fields["webui"] = edition == "standard"
    webui = metadata.flag("enable_webservice")
    if webui is not None and edition == "standard":
        fields["webui"] = webui
    with metadata.section("rpc") as rpc:
        _rpc(rpc, fields)
    with metadata.section("rolling_strategy") as rolling:
        fields["max_surge"] = _share(rolling, "max_surge", fields["instances"], 1, up=True)
        fields["max_unavailable"] = _share(
            rolling, "max_unavailable", fields["instances"], 0, up=False
        )
    with metadata.section("eas") as eas:
        grace = eas.number("termination_grace_period", most=3600)
        if grace is not None:
            fields["termination_grace_seconds"] = grace
    for key in (
        "workspace_id",
        "resource",
        "resource_burstable",
        "resource_rebalancing",
        "quota_id",
    ):
        metadata.ignored(key, CLOUD)
    for key in ("workload_type", "qos", "scheduling", "disk", "group"):
        metadata.ignored(key, "is not obeyed here")
    metadata.ignored("shm_size", "processes of this machine share its /dev/shm")
    metadata.ignored("enable_grpc", "ComfyUI does not speak gRPC")


def _rpc(rpc: Section, fields: dict[str, Any]) -> None:
    keepalive = rpc.whole("keepalive", least=1, most=86_400_000)
    if keepalive is not None:
        fields["keepalive_ms"] = keepalive
    queue = rpc.whole("max_queue_size", most=10_000_000)
    if queue is not None:
        fields["max_waiting"] = queue
    rate = rpc.number("rate_limit", most=1e9)
    if rate is not None:
        fields["rate_limit"] = rate
    for key in ("io_threads", "worker_threads", "batching", "max_batch_size", "max_batch_timeout"):
        rpc.ignored(key, "ComfyUI runs one prompt at a time; the gateway needs no such number")
    rpc.ignored("enable_sigterm", "instances are always drained, then get SIGTERM")
    path = rpc.text("proxy_path")
    if path not in (None, "/"):
        rpc.warn("proxy_path", "is not obeyed: paths below the service go to ComfyUI as they are")


def _share(section: Section, key: str, total: int, default: int, *, up: bool) -> int:
    """A count, or a percentage of the instances: rounded up for a surge (at least 1), down otherwise."""
    if isinstance(section.peek(key), str):
        text = section.text(key, pattern=r"\d{1,3}%", words="must be a count or a percentage")
        if text is None:
            return default
        exact = int(text[:-1]) * total / 100
        return max(default, -int(-exact // 1) if up else int(exact))
    found = section.whole(key, most=1000)
    return default if found is None else max(found, default)


def _container(container: Section, fields: dict[str, Any]) -> None:
    image = container.text("image")
    version = IMAGE_VERSION.search(image) if image else None
    if image is not None:
        container.warn(
            "image",
            "no image is pulled: instances run an installed ComfyUI (easel comfyui list)"
            + (
                f"; the image's own number {version[1]} is not ComfyUI's version" if version else ""
            ),
        )
    installation = container.text("comfyui")
    port = container.whole("port", least=1, most=65535)
    if port in RESERVED:
        container.fault("port", f"{port} is reserved; the vendor refuses it, too")
    fields["port"] = port or 8000
    fields["env"] = _environment(container)
    with container.section("prepare") as prepare:
        fields["requirements"] = prepare.texts("pythonRequirements")
        fields["requirements_path"] = prepare.text("pythonRequirementsPath")
    _run(container, fields, installation)
    for key in ("startup_check", "liveness_check", "readiness_check"):
        with container.section(key) as check:
            if container.has(key):
                fields[key] = read_check(check)


def _run(container: Section, fields: dict[str, Any], installation: str | None) -> None:
    """The script or command, and the data directory it names."""
    script, command = container.text("script"), container.text("command")
    key = "command" if script is None else "script"
    if script is not None and command is not None:
        container.fault("command", "there is a script, too: give one of them")
    text = script if script is not None else command
    fields["engine"] = EngineSpec(kind="comfyui", comfyui=installation)
    if text is None:
        container.fault("script", "is missing: how is ComfyUI started?")
        return
    found = read_script(text, comfyui=installation)
    for fault in found.faults:
        container.fault(key, fault)
    for warning in found.warnings:
        container.warn(key, warning)
    if key == "command" and found.engine is not None and found.engine.prepare:
        container.fault(key, "is a single command; several go into script")
    if found.engine is not None:
        fields["engine"] = found.engine
        if found.engine.kind == "command":
            container.warn(key, "is neither ComfyUI's main.py nor easel engine: run as it is")
    if fields["engine"].kind != "comfyui" and (
        fields["requirements"] or fields["requirements_path"]
    ):
        container.warn(
            "prepare", "is obeyed for ComfyUI only: what else is run brings its own packages"
        )
    if fields["engine"].kind != "comfyui" and fields["engine"].prepare:
        container.warn(key, "the commands before the last are run for ComfyUI only")
    paths = [mount.mount_path.rstrip("/") for mount in fields["mounts"]]
    if found.data_path is not None and found.data_path not in paths:
        listed = ", ".join(paths) or "there is none"
        container.fault(
            key, f"--data-dir {found.data_path} must equal a storage mount_path ({listed})"
        )
    fields["data_path"] = found.data_path or (paths[0] if len(paths) == 1 else None)
    if found.data_path is None and len(paths) > 1:
        container.warn(key, "names no --data-dir: none of the mounts is the data directory")
    if found.port is not None and found.port != fields["port"]:
        container.warn(key, f"its port {found.port} is not containers[].port {fields['port']}")


def _environment(container: Section) -> dict[str, str]:
    found: dict[str, str] = {}
    with container.sections("env") as entries:
        for entry in entries:
            name = entry.text("name", pattern=r"[A-Za-z_]\w*", words="must be a variable's name")
            value = entry.text("value")
            if name is not None:
                found[name] = value or ""
            elif not entry.has("name"):
                entry.fault("name", "is missing")
    return found


def _networking(networking: Section, fields: dict[str, Any]) -> None:
    with networking.section("gateway_policy") as policy:
        with policy.section("rate_limit") as rate:
            limit = rate.number("limit", most=1e9)
            if rate.flag("enable") and limit is not None:
                fields["rate_limit"] = limit
        with policy.section("concurrency_limit") as concurrency:
            most = concurrency.whole("limit", most=10**9)
            if concurrency.flag("enable") and most is not None:
                fields["concurrency_limit"] = most
    for key in ("gateway", "nlb", "vpc_id", "vswitch_id", "security_group_id"):
        networking.ignored(key, CLOUD)


def _autoscaler(root: Section) -> dict[str, Any]:
    """Kept for the editions that scale; the vendor itself ignores the snake_case form without a word."""
    with root.section("autoscaler") as scaler:
        found: dict[str, Any] = {}
        for key in ("min", "max"):
            number = scaler.whole(key, most=1000)
            if number is not None:
                found[key] = number
        for key in ("min_replica", "max_replica", "scale_strategies"):
            scaler.ignored(
                key, "is not read (by the vendor neither): write min, max, scaleStrategies"
            )
        for key in ("behavior", "strategies"):
            if scaler.has(key):
                found[key] = scaler.raw(key)
        with scaler.sections("scaleStrategies") as strategies:
            listed = []
            for one in strategies:
                metric = one.text("metricName")
                threshold = one.number("threshold")
                service = one.text("service")
                entry = {"metricName": metric, "threshold": threshold, "service": service}
                listed.append({name: value for name, value in entry.items() if value is not None})
            if listed:
                found["scaleStrategies"] = listed
    if found:
        root.warn("autoscaler", "is kept; instances are not scaled by load yet: easel scale does")
    return found
