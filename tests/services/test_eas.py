"""The vendor's service JSON: obeyed, warned of, or refused; never swallowed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.errors import InvalidSpec
from easel.services.eas import read_eas
from easel.services.model import HealthCheck, Mount

SCRIPT = "python main.py --listen --port 8000 --data-dir /code/data-oss"


def service(**changes: Any) -> dict[str, Any]:
    """A small service; ``metadata__name`` sets a field of a part."""
    found: dict[str, Any] = {
        "metadata": {"name": "comfy_api", "instance": 1},
        "containers": [{"image": "pai-eas/comfyui:2.2", "port": 8000, "script": SCRIPT}],
        "storage": [{"mount_path": "/code/data-oss", "oss": {"path": "/data/paint"}}],
    }
    for key, value in changes.items():
        part, _, name = key.partition("__")
        if not name:
            found[part] = value
        elif part == "container":
            found["containers"][0][name] = value
        else:
            found.setdefault(part, {})[name] = value
    return found


def faults(**changes: Any) -> dict[str, str]:
    with pytest.raises(InvalidSpec) as raised:
        read_eas(service(**changes))
    return dict(raised.value.faults)


def test_the_documents_own_example() -> None:
    spec, warnings = read_eas(json.dumps(service()))
    assert (spec.name, spec.edition, spec.instances) == ("comfy_api", "standard", 1)
    assert (spec.engine.kind, spec.engine.arguments) == ("comfyui", [])
    assert spec.mounts == [Mount(mount_path="/code/data-oss", source="/data/paint")]
    assert spec.data_path == "/code/data-oss"
    assert [one.partition(":")[0] for one in warnings] == ["containers[0].image"]


def test_everything_that_is_understood_is_obeyed(tmp_path: Path) -> None:
    checks = {
        "startup_check": {
            "http_get": {"path": "/", "port": 8000},
            "initial_delay_seconds": 60,
            "period_seconds": 10,
            "failure_threshold": 30,
        },
        "liveness_check": {"tcp_socket": {"port": 8000}},
        "readiness_check": {"exec": {"command": ["true"]}},
    }
    script = "pip install /mnt/data/models/whl/x.whl\npython -u main.py --port 8000 --data-dir /mnt/data --lowvram"
    spec, warnings = read_eas(
        {
            "metadata": {
                "name": "render",
                "instance": 4,
                "type": "Async",
                "memory": 1024,
                "gpu": 1,
                "rpc": {"keepalive": 1000, "max_queue_size": 7, "rate_limit": 3},
                "rolling_strategy": {"max_surge": "50%", "max_unavailable": 1},
                "eas": {"termination_grace_period": 5},
            },
            "containers": [
                {
                    "port": 8000,
                    "script": script,
                    "env": [{"name": "A", "value": "b"}],
                    "prepare": {
                        "pythonRequirements": ["numpy==1.26"],
                        "pythonRequirementsPath": "/mnt/data/requirements.txt",
                    },
                    **checks,
                }
            ],
            "storage": [
                {"mount_path": "/mnt/data", "oss": {"path": "oss://bucket/dir/", "readOnly": True}},
                {"mount_path": "/cache", "empty_dir": {"medium": "memory"}},
                {"mount_path": "/share", "nfs": {"path": "/srv/share"}},
            ],
            "networking": {"gateway_policy": {"concurrency_limit": {"enable": True, "limit": 50}}},
            "runtime": {"enable_crash_block": True},
            "labels": {"k": "v"},
            "token": "secret-of-mine",
        },
        oss_root=tmp_path,
    )
    assert warnings == []
    assert (spec.edition, spec.instances, spec.webui) == ("api", 4, False)
    assert (spec.memory_bytes, spec.gpus) == (1024 * 1024 * 1024, 1)
    assert (spec.keepalive_ms, spec.max_waiting, spec.rate_limit) == (1000, 7, 3)
    assert (spec.max_surge, spec.max_unavailable, spec.termination_grace_seconds) == (2, 1, 5)
    assert spec.engine.arguments == ["--lowvram"]
    assert spec.engine.prepare == ["pip install /mnt/data/models/whl/x.whl"]
    assert spec.env == {"A": "b"}
    assert spec.requirements == ["numpy==1.26"]
    assert spec.requirements_path == "/mnt/data/requirements.txt"
    assert spec.startup_check == HealthCheck(
        path="/", port=8000, initial_delay_seconds=60, failure_threshold=30
    )
    assert spec.liveness_check == HealthCheck(port=8000)
    assert spec.readiness_check == HealthCheck(command=["true"])
    assert [mount.source for mount in spec.mounts] == [
        str(tmp_path / "bucket" / "dir"),
        None,
        "/srv/share",
    ]
    assert spec.mounts[0].read_only
    assert spec.concurrency_limit == 50
    assert not spec.restart_after_crash
    assert (spec.labels, spec.token) == ({"k": "v"}, "secret-of-mine")


def test_every_fault_is_found_at_once_with_its_path() -> None:
    found = faults(
        metadata__name="No",
        metadata__instance="two",
        container__port=8080,
        container__prepare={"pythonRequirements": ["numpy", 3]},
        container__startup_check={"http_get": {"path": "x"}, "tcp_socket": {"port": 1}},
        storage=[{"oss": {"path": "ftp://x"}}],
    )
    assert set(found) >= {
        "metadata.name",
        "metadata.instance",
        "containers[0].port",
        "containers[0].prepare.pythonRequirements[1]",
        "containers[0].startup_check",
        "containers[0].startup_check.http_get.path",
        "storage[0].mount_path",
        "storage[0].oss.path",
    }


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"metadata__instance": 2}, "metadata.instance", "exactly 1"),
        (
            {"container__script": "python main.py --data-dir /other"},
            "containers[0].script",
            "equal",
        ),
        ({"container__script": "python main.py | tee log"}, "containers[0].script", "alone"),
        ({"container__script": "python 'main.py"}, "containers[0].script", "shell words"),
        ({"container__script": ""}, "containers[0].script", "empty"),
        ({"container__command": "python main.py"}, "containers[0].command", "one of them"),
        ({"containers": []}, "containers", "no container"),
        ({"storage": [{"mount_path": "/d", "git": {"repo": "x"}}]}, "storage[0].git", "folder"),
        ({"token": "with space"}, "token", "without spaces"),
    ],
)
def test_a_fault_says_what_is_wrong(changes: dict[str, Any], path: str, words: str) -> None:
    assert words in faults(**changes)[path]


def test_json_that_is_none_is_told_where() -> None:
    with pytest.raises(InvalidSpec, match="line 2, column 3"):
        read_eas("{\n  x")
    with pytest.raises(InvalidSpec, match="object"):
        read_eas("[]")


def test_what_is_not_obeyed_is_named_with_its_path() -> None:
    _, warnings = read_eas(
        service(
            cloud={"computing": {"instance_type": "x"}},
            metadata__cpu=8,
            metadata__gpu=2,
            autoscaler={"min_replica": 1, "max": 3},
            surprise={"a": 1},
        )
    )
    named = {one.partition(":")[0] for one in warnings}
    assert named >= {
        "cloud",
        "metadata.cpu",
        "metadata.gpu",
        "autoscaler.min_replica",
        "autoscaler",
        "surprise",
    }


def test_a_command_that_is_not_comfyui_is_run_as_it_is() -> None:
    spec, warnings = read_eas(service(container__script="mine --port 8000"))
    assert (spec.engine.kind, spec.engine.command) == ("command", ["mine", "--port", "8000"])
    assert any("run as it is" in one for one in warnings)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
KNOWN = st.sampled_from(
    ["metadata", "containers", "storage", "networking", "runtime", "autoscaler", "labels", "token"]
)


@given(st.dictionaries(KNOWN | st.text(max_size=6), JSON, max_size=6))
def test_any_json_gives_a_specification_or_faults(document: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidSpec):
        read_eas({**service(), **document})


@given(st.text(alphabet="abcdefgh", min_size=4, max_size=9), JSON.filter(lambda v: v is not None))
def test_an_unknown_key_anywhere_is_named(key: str, value: Any) -> None:
    for part in ("", "metadata", "container", "networking", "runtime"):
        changes = {f"{part}__{key}": value} if part else {key: value}
        try:
            _, warnings = read_eas(service(**changes))
        except InvalidSpec as refused:
            named = [path for path, _ in refused.faults]
        else:
            named = [one.partition(":")[0] for one in warnings]
        assert any(one.endswith(key) for one in named), (part, key, named)
