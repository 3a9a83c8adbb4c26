"""The condition of a service, for every mixture of instances."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easel.services.model import Instance, InstanceStatus, Service, ServiceStatus
from easel.services.status import CRASH_LOOP, NO_DEVICE, UPDATE_PAUSED, derive, is_current


def service(**fields: object) -> Service:
    whole = {
        "name": "draw",
        "edition": "api",
        "revision": 2,
        "stable_revision": 1,
        "instances": 1,
        "token": "",
        "join_token": "",
        "created": 0,
        "updated": 0,
        **fields,
    }
    return Service(**whole)  # type: ignore[arg-type]


def instance(status: InstanceStatus, revision: int = 2, **fields: object) -> Instance:
    whole = {
        "id": "i",
        "service": "draw",
        "revision": revision,
        "status": status,
        "created": 0,
        "updated": 0,
        **fields,
    }
    return Instance(**whole)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "instances", "status", "reason"),
    [
        (service(stable_revision=None), [], "Creating", ""),
        (service(), [], "Starting", ""),
        (service(), [instance("pending")], "Waiting", ""),
        (service(), [instance("pending", reason=NO_DEVICE)], "Pending", NO_DEVICE),
        (service(), [instance("starting")], "Waiting", ""),
        (service(), [instance("ready")], "Running", ""),
        (service(instances=2), [instance("ready"), instance("starting")], "Scaling", ""),
        (
            service(),
            [instance("ready"), instance("stopping", target="stopped")],
            "Scaling",
            "",
        ),
        (service(), [instance("backoff", reason="Killed")], "Waiting", "Killed"),
        (service(), [instance("backoff", reason=CRASH_LOOP)], "Waiting", CRASH_LOOP),
        (
            service(instances=2),
            [instance("ready"), instance("backoff", reason="Killed")],
            "Running",
            "Killed",
        ),
        (service(), [instance("failed", reason="MissingMount")], "Failed", "MissingMount"),
        (
            service(),
            [instance("failed", reason="MissingMount"), instance("ready", 1)],
            "Updating",
            UPDATE_PAUSED,
        ),
        (service(), [instance("starting"), instance("ready", 1)], "Updating", ""),
        (
            service(),
            [instance("pending", reason=NO_DEVICE), instance("ready", 1)],
            "Pending",
            NO_DEVICE,
        ),
        (service(restarts_asked=1), [instance("ready", generation=0)], "Updating", ""),
        (service(instances=0), [], "Running", ""),
        (service(instances=0), [instance("ready", 1, runtime="joined")], "Running", ""),
        (service(target="stopped"), [instance("ready", target="stopped")], "Stopping", ""),
        (service(target="stopped"), [], "Stopped", ""),
        (service(target="deleted"), [], "Deleting", ""),
    ],
)
def test_the_words(wanted: Service, instances: list[Instance], status: str, reason: str) -> None:
    found = derive(wanted, instances)
    assert (found.status, found.reason) == (status, reason)


some_instances = st.lists(
    st.builds(
        instance,
        st.sampled_from(get_args(InstanceStatus)),
        st.integers(1, 2),
        target=st.sampled_from(["running", "stopped"]),
        generation=st.integers(0, 1),
        reason=st.sampled_from(["", "Killed", NO_DEVICE, CRASH_LOOP]),
        message=st.sampled_from(["", "said"]),
        runtime=st.sampled_from(["local", "joined"]),
    ),
    max_size=4,
)
some_service = st.builds(
    service,
    instances=st.integers(0, 3),
    stable_revision=st.sampled_from([None, 1, 2]),
    restarts_asked=st.integers(0, 1),
    target=st.sampled_from(["running", "stopped", "deleted"]),
)


@settings(max_examples=500)
@given(some_service, some_instances)
def test_what_every_condition_means(wanted: Service, instances: list[Instance]) -> None:
    found = derive(wanted, instances)
    assert found.status in get_args(ServiceStatus)
    here = [one for one in instances if one.target == "running"]
    current = [one for one in here if is_current(wanted, one)]
    ready = [one for one in current if one.status == "ready"]
    match found.status:
        case "Deleting" | "Stopping" | "Stopped":
            assert wanted.target == ("deleted" if found.status == "Deleting" else "stopped")
            assert found.status != "Stopped" or not instances
        case _ if wanted.target != "running":
            raise AssertionError(found)
        case "Failed":
            assert not ready
            assert any(one.status == "failed" for one in current)
        case "Running":
            assert ready or not wanted.instances
            assert found.reason or len(here) == len(instances) == len(ready)
        case "Updating":
            assert len(current) < len(here)
        case "Pending":
            assert any(one.status == "pending" and one.reason for one in current)
            assert found.reason
        case "Creating" | "Starting":
            assert not current
        case "Waiting":
            assert not ready
        case "Scaling":
            assert ready
