"""Updates, restarts, roll-backs: what serves goes on serving."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from easel.fleet.rollout import plan
from easel.services.model import Edition, Instance, Service
from easel.services.status import is_current
from tests.fleet.faulty_runtimes import FailsAtStage, FailsRevision, Machine, gpus, slots
from tests.fleet.stage import Stage, spec

BROKEN = {"broken": "yes"}


async def test_the_new_one_is_ready_before_the_old_one_leaves() -> None:
    stage = Stage(Machine(*slots(3)))
    await stage.deploy(instances=2)
    await stage.settle()
    old = {one.id for one in await stage.instances()}
    stage.never_ready.add("draw")
    await stage.update(env={"a": "1"}, instances=2)
    await stage.settle()
    found = await stage.describe()
    assert (found.status, found.revision, found.stable_revision) == ("Updating", 2, 1)
    assert old < {one.id for one in found.instances}
    assert len(found.instances) == 3
    assert not stage.drained
    stage.never_ready.clear()
    await stage.settle()
    found = await stage.describe()
    assert (found.status, found.stable_revision, found.running) == ("Running", 2, 2)
    assert set(stage.drained) == old
    assert "UpdateComplete" in await stage.reasons()
    assert len(stage.machine.running) == 2
    assert stage.machine.folders == {one.id for one in found.instances}


async def test_what_the_gateway_obeys_changes_without_a_restart() -> None:
    stage = Stage()
    await stage.deploy()
    await stage.settle()
    before = [one.id for one in await stage.instances()]
    await stage.update(max_waiting=5, rate_limit=2.5)
    await stage.settle()
    found = await stage.describe()
    assert (found.status, found.revision, found.stable_revision) == ("Running", 2, 2)
    assert [one.id for one in found.instances] == before
    assert found.instances[0].revision == 2


async def test_a_failing_revision_pauses_the_update_and_can_be_rolled_back() -> None:
    stage = Stage(Machine(*slots(3)), FailsRevision)
    await stage.deploy(instances=2)
    await stage.settle()
    old = {one.id for one in await stage.instances()}
    await stage.update(env=BROKEN, instances=2)
    await stage.later(10_000)
    found = await stage.describe()
    assert (found.status, found.reason) == ("Updating", "UpdatePaused")
    assert "/data is not there" in found.message
    assert {one.id for one in found.instances if one.status == "ready"} == old
    assert len(stage.machine.launches) == 3
    assert (await stage.store.revision("draw", 2)).failed
    (event,) = [e for e in await stage.store.events("draw") if e.reason == "UpdatePaused"]
    assert event.type == "Warning"
    assert "revision 1" in event.advice
    await stage.services.rollback("draw")
    await stage.settle()
    found = await stage.describe()
    assert (found.status, found.revision, found.latest_revision) == ("Running", 1, 2)
    assert {one.id for one in found.instances} == old
    assert not stage.drained


async def test_a_paused_update_can_be_scaled_down() -> None:
    stage = Stage(Machine(*slots(4)), FailsRevision)
    await stage.deploy(instances=3)
    await stage.settle()
    await stage.update(env=BROKEN, instances=3)
    await stage.settle()
    await stage.services.scale("draw", 1)
    await stage.settle()
    found = await stage.describe()
    assert (found.reason, found.running) == ("UpdatePaused", 1)


async def test_a_later_update_replaces_the_failed_one() -> None:
    stage = Stage(Machine(*slots(3)), FailsRevision)
    await stage.deploy(instances=2)
    await stage.settle()
    await stage.update(env=BROKEN, instances=2)
    await stage.settle()
    await stage.update(env={"mended": "yes"}, instances=2)
    await stage.settle()
    found = await stage.describe()
    assert (found.status, found.revision, found.stable_revision) == ("Running", 3, 3)
    assert len(found.instances) == 2
    assert len(stage.machine.running) == 2


async def test_a_revision_that_crash_loops_pauses_the_update() -> None:
    stage = Stage(Machine(*slots(3)))
    await stage.deploy()
    await stage.settle()
    (old,) = [one.id for one in await stage.instances()]
    await stage.update(env={"a": "1"})
    stage.never_ready.add("draw")
    for _ in range(6):
        await stage.settle()
        for one in await stage.instances():
            if one.id != old:
                for pid in stage.machine.of(one.id):
                    del stage.machine.running[pid]
        await stage.later(5)
    found = await stage.describe()
    assert (found.status, found.reason) == ("Updating", "UpdatePaused")
    assert len(stage.machine.of(old)) == 1
    assert "CrashLoopBackOff" in await stage.reasons()
    assert not stage.drained


async def test_a_revision_that_is_never_ready_pauses_the_update() -> None:
    stage = Stage()
    await stage.deploy()
    await stage.settle()
    await stage.update(env={"a": "1"})
    stage.never_ready.add("draw")
    await stage.settle()
    await stage.later(101)
    found = await stage.describe()
    assert (found.status, found.reason, found.running) == ("Updating", "UpdatePaused", 1)


async def test_the_old_one_that_ends_during_a_paused_update_is_started_again() -> None:
    stage = Stage(Machine(*slots(3)), FailsRevision)
    await stage.deploy()
    await stage.settle()
    (old,) = [one.id for one in await stage.instances()]
    await stage.update(env=BROKEN)
    await stage.settle()
    stage.machine.running.clear()
    await stage.settle()
    assert (await stage.describe()).reason == "UpdatePaused"
    await stage.later(2)
    found = await stage.describe()
    assert [one.id for one in found.instances if one.status == "ready"] == [old]


async def test_on_one_device_the_standard_edition_is_replaced_in_place() -> None:
    stage = Stage(Machine(*gpus(1)))
    await stage.deploy(edition="standard")
    await stage.settle()
    (old,) = await stage.instances()
    await stage.update(edition="standard", env={"a": "1"})
    await stage.settle()
    (new,) = await stage.instances()
    assert (await stage.describe()).status == "Running"
    assert new.revision == 2
    assert stage.drained == [old.id]
    assert "NoDevice" not in await stage.reasons()


async def test_without_room_for_a_surge_the_update_waits_and_says_so() -> None:
    stage = Stage(Machine(*gpus(1)))
    await stage.deploy()
    await stage.settle()
    await stage.update(env={"a": "1"})
    await stage.later(1000)
    found = await stage.describe()
    assert (found.status, found.reason, found.running) == ("Pending", "NoDevice", 1)
    assert "max_unavailable" in found.message
    await stage.update(env={"a": "1"}, max_unavailable=1)
    await stage.settle()
    found = await stage.describe()
    assert (found.status, found.revision, found.stable_revision) == ("Running", 3, 3)
    assert len(found.instances) == 1


async def test_an_update_mends_one_that_crash_loops_on_the_only_device() -> None:
    stage = Stage(Machine(*gpus(1)))
    await stage.deploy()
    await stage.settle()
    stage.machine.running.clear()
    await stage.settle()
    assert (await stage.describe()).reason == "Killed"
    await stage.update(env={"mended": "yes"})
    await stage.settle()
    found = await stage.describe()
    assert (found.status, found.stable_revision) == ("Running", 2)


async def test_trying_again_leaves_alone_what_works() -> None:
    stage = Stage()
    await stage.deploy()
    await stage.settle()
    (works,) = [one.id for one in await stage.instances()]
    stage.runtime = FailsAtStage(stage.machine, 3, for_good=True)
    stage.controller = stage.another()
    await stage.services.scale("draw", 2)
    await stage.settle()
    found = await stage.describe()
    assert (found.status, found.reason, found.running) == ("Running", "MissingComfyUI", 1)
    stage.runtime = FailsAtStage(stage.machine, 0)
    stage.controller = stage.another()
    await stage.services.start("draw")
    await stage.settle()
    found = await stage.describe()
    assert (found.status, found.running, found.total) == ("Running", 2, 2)
    assert works in {one.id for one in found.instances}


async def test_max_unavailable_is_not_used_where_there_is_room() -> None:
    stage = Stage()
    await stage.deploy(max_unavailable=1)
    await stage.settle()
    stage.never_ready.add("draw")
    await stage.update(max_unavailable=1, env={"a": "1"})
    await stage.settle()
    assert (await stage.describe()).running == 1


async def test_without_surge_one_leaves_at_a_time() -> None:
    stage = Stage(Machine(*slots(4)))
    await stage.deploy(instances=3, max_surge=0)
    await stage.settle()
    stage.never_ready.add("draw")
    await stage.update(instances=3, max_surge=0, env={"a": "1"})
    await stage.settle()
    found = await stage.describe()
    assert (found.running, found.total) == (2, 3)
    stage.never_ready.clear()
    await stage.settle()
    assert (await stage.describe()).status == "Running"


async def test_a_restart_replaces_every_instance_one_after_the_other() -> None:
    stage = Stage(Machine(*slots(3)))
    await stage.deploy(instances=2)
    await stage.settle()
    old = {one.id for one in await stage.instances()}
    await stage.services.restart("draw")
    await stage.settle()
    found = await stage.describe()
    assert (found.status, found.revision, found.running) == ("Running", 1, 2)
    assert not old & {one.id for one in found.instances}


async def test_a_stop_in_the_middle_of_an_update_leaves_nothing() -> None:
    stage = Stage()
    await stage.deploy()
    await stage.settle()
    stage.never_ready.add("draw")
    await stage.update(env={"a": "1"})
    await stage.settle()
    assert (await stage.describe()).status == "Updating"
    await stage.services.stop("draw")
    await stage.settle()
    assert (await stage.describe()).status == "Stopped"
    assert not stage.machine.running
    stage.never_ready.clear()
    await stage.services.start("draw")
    await stage.settle()
    found = await stage.describe()
    assert (found.status, found.instances[0].revision) == ("Running", 2)


# The plan itself.

STATUSES = ["pending", "starting", "ready", "unready", "backoff", "failed"]


@st.composite
def situations(draw: st.DrawFn) -> tuple[Service, list[Instance]]:
    editions: list[Edition] = ["standard", "api"]
    edition = draw(st.sampled_from(editions))
    service = Service(
        name="draw",
        edition=edition,
        revision=2,
        stable_revision=draw(st.sampled_from([None, 1, 2])),
        instances=1 if edition == "standard" else draw(st.integers(0, 4)),
        target=draw(st.sampled_from(["running"] * 5 + ["stopped", "deleted"])),
        restarts_asked=draw(st.integers(0, 1)),
        token="",
        join_token="",
        created=0,
        updated=0,
    )
    instances = [
        Instance(
            id=f"i{number}",
            service="draw",
            revision=draw(st.integers(1, 2)),
            generation=draw(st.integers(0, 1)),
            target=draw(st.sampled_from(["running"] * 4 + ["stopped"])),
            status=draw(st.sampled_from(STATUSES)),
            reason=draw(st.sampled_from(["", "NoDevice"])),
            created=draw(st.integers(0, 3)),
            updated=0,
        )
        for number in range(draw(st.integers(0, 7)))
    ]
    return service, instances


@given(situations(), st.integers(0, 2), st.integers(0, 2))
def test_a_plan_keeps_within_what_was_promised(
    situation: tuple[Service, list[Instance]], surge: int, unavailable: int
) -> None:
    service, instances = situation
    wanted = spec(edition=service.edition, max_surge=surge, max_unavailable=unavailable)
    step = plan(service, wanted, instances)
    live = {one.id: one for one in instances if one.target == "running"}
    assert len(set(step.retire)) == len(step.retire)
    assert set(step.retire) <= set(live)
    if service.target != "running":
        assert (set(step.retire), step.create) == (set(live), 0)
        return
    kept = [one for key, one in live.items() if key not in step.retire]
    current = [one for one in live.values() if is_current(service, one)]
    assert step.create == 0 or len(kept) + step.create <= service.instances + surge
    assert len([one for one in current if one in kept]) + step.create <= max(
        service.instances, len(current)
    )
    ready_before = sum(one.status == "ready" for one in live.values())
    ready_after = sum(one.status == "ready" for one in kept)
    may_miss = max(unavailable, 1)
    assert ready_after >= min(ready_before, service.instances - may_miss)
    room = not any(one.reason == "NoDevice" and one.status == "pending" for one in current)
    if room and surge:
        assert ready_after >= min(ready_before, service.instances)
    if step.complete:
        assert step == (0, (), False, True)
        assert all(is_current(service, one) and one.status == "ready" for one in instances)


@given(situations(), st.integers(0, 2), st.integers(0, 2))
def test_every_plan_leads_to_the_end_when_instances_get_ready(
    situation: tuple[Service, list[Instance]], surge: int, unavailable: int
) -> None:
    service, instances = situation
    wanted = spec(edition=service.edition, max_surge=surge, max_unavailable=unavailable)
    instances = [one for one in instances if one.target == "running"]
    for number in range(40):
        for one in instances:
            if one.status != "failed":
                one.status, one.reason = "ready", ""
        step = plan(service, wanted, instances)
        instances = [one for one in instances if one.id not in step.retire]
        instances += [
            Instance(
                id=f"n{number}-{n}",
                service="draw",
                revision=service.revision,
                generation=service.restarts_asked,
                created=number,
                updated=0,
            )
            for n in range(step.create)
        ]
        if not step.create and not step.retire:
            break
    else:
        raise AssertionError("it never ends")
    if service.target != "running":
        assert not instances
    elif not any(one.status == "failed" for one in instances):
        assert len(instances) == service.instances
        assert all(is_current(service, one) for one in instances)
