"""Tasks over the link: begun, watched, ended, refused, and what their files become."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from easel.link import messages
from easel.link.messages import Cancel, Finished, Progressed, Recall, Returned, Started, Watch
from tests.agent.agents import node, noop, picture, salts, sleep, steps, text_file
from tests.agent.joining.gateways import Member, member
from tests.agent.web import serve
from tests.waiting import until


async def test_a_task_is_run_and_its_picture_is_in_the_storage(joined: Member) -> None:
    assign = await joined.gateway.assign(picture())
    ended = await joined.gateway.ended(assign)

    assert (ended.state, ended.error, ended.lease) == ("succeeded", None, assign.lease)
    assert set(ended.nodes) == {"1", "2"}
    image = ended.nodes["2"].images[0]
    assert image["url"] == f"/api/outputs/{assign.folder}/{image['filename']}"
    stored = joined.outputs(assign) / image["filename"]
    assert len(await asyncio.to_thread(stored.read_bytes)) == image["size"] > 0
    started = joined.gateway.all(Started, assign.uid)
    assert [one.at for one in started] == [ended.started]
    assert ended.started
    assert ended.ended >= ended.started


async def test_what_is_said_of_a_task_comes_in_order(joined: Member) -> None:
    assign = await joined.gateway.assign(steps(30, 0.01))
    await joined.gateway.ended(assign)

    said = [one for one in joined.gateway.said if getattr(one, "uid", None) == assign.uid]
    kinds = [type(one) for one in said]
    assert kinds[0] is Started
    assert kinds[-1] is Finished
    assert set(kinds[1:-1]) == {Progressed}
    numbers = [one.n for one in said if isinstance(one, Started | Finished)]
    assert numbers == sorted(set(numbers))


async def test_progress_is_what_changed_and_adds_up(joined: Member) -> None:
    first = steps(20, 0.01)["1"]
    prompt = {"a": first, "b": node("EaselSteps", **{**first["inputs"], "salt": next(salts)})}
    assign = await joined.gateway.assign(prompt)
    await joined.gateway.ended(assign)

    told = joined.gateway.all(Progressed, assign.uid)
    percents = [one.percent for one in told]
    assert percents == sorted(percents)
    assert all(one.nodes for one in told)
    assert all(one.lease == assign.lease for one in told)
    # Another node is a border, and nothing else is.
    before, borders = None, []
    for one in told:
        assert one.border == (one.current_node != before)
        before = one.current_node
        borders += [one.current_node] if one.border else []
    assert {"a", "b"} <= set(borders)
    # Once the second node is on, the first one's changes are not told again.
    assert any(len(one.nodes) == 1 for one in told)


async def test_the_first_progress_names_every_node(joined: Member) -> None:
    prompt = {**steps(20, 0.01), "2": noop()["1"], "3": noop("other")["1"]}
    assign = await joined.gateway.assign(prompt)
    first = await joined.gateway.heard(Progressed, assign.uid)
    assert set(first.nodes) == {"1", "2", "3"}


async def test_previews_come_to_those_who_watch(joined: Member) -> None:
    unwatched = await joined.gateway.assign(steps(5, 0.01, preview=True))
    await joined.gateway.ended(unwatched)
    assert not joined.gateway.previews

    watched = await joined.gateway.assign(steps(20, 0.02, preview=True), previews=True)
    await joined.gateway.ended(watched)
    head, image = joined.gateway.previews[0]
    assert (head.uid, head.node, head.image_type) == (watched.uid, "1", "image/jpeg")
    assert image.startswith(b"\xff\xd8")


async def test_somebody_begins_to_watch_and_leaves(joined: Member) -> None:
    assign = await joined.gateway.assign(steps(3000, 0.01, preview=True))
    await joined.gateway.heard(Progressed, assign.uid)
    assert not joined.gateway.previews
    await joined.gateway.say(Watch(uid=assign.uid, previews=True))
    await joined.gateway.until(lambda: len(joined.gateway.previews) >= 2)
    await joined.gateway.say(Watch(uid=assign.uid, previews=False))
    seen = len(joined.gateway.all(Progressed, assign.uid))
    # What was on its way has come when two more reports have.
    await joined.gateway.heard(Progressed, assign.uid, count=seen + 2)
    before = len(joined.gateway.previews)
    await joined.gateway.heard(Progressed, assign.uid, count=seen + 5)
    assert len(joined.gateway.previews) == before
    await joined.gateway.say(Cancel(uid=assign.uid, lease=assign.lease))
    await joined.gateway.ended(assign)


BROKEN_PICTURE = "data:image/png;base64,AAAA"


@pytest.mark.parametrize(
    ("prompt", "code", "status"),
    [
        ({"1": node("NoSuchNode")}, "invalid_prompt", 400),
        ({"1": node("SaveImage", filename_prefix="x")}, "invalid_prompt", 400),
        (
            {
                "1": node("LoadImage", image=BROKEN_PICTURE),
                "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
            },
            "input_rejected",
            400,
        ),
        (
            {"1": node("EaselFail", message="no", exception="ValueError", steps=0, salt=0)},
            "execution_failed",
            500,
        ),
    ],
)
async def test_what_cannot_run_fails_with_what_is_wrong(
    joined: Member, prompt: dict[str, object], code: str, status: int
) -> None:
    assign = await joined.gateway.assign(prompt)
    ended = await joined.gateway.ended(assign)
    assert ended.state == "failed"
    assert ended.error is not None
    assert (ended.error["code"], ended.error["http_status"]) == (code, status), ended.error
    await joined.gateway.holds()


async def test_a_cancelled_task_ends_cancelled(joined: Member) -> None:
    assign = await joined.gateway.assign(sleep(60))
    await joined.gateway.heard(Started, assign.uid)
    await joined.gateway.say(Cancel(uid=assign.uid, lease="another"))
    await joined.gateway.holds(assign)
    await joined.gateway.say(Cancel(uid=assign.uid, lease=assign.lease))
    ended = await joined.gateway.ended(assign)
    assert ended.state == "cancelled"
    assert not joined.gateway.all(Returned)
    await until(joined.agent.engine_idle)


@pytest.mark.parametrize("recalled", [False, True])
async def test_a_task_is_stopped_while_its_inputs_are_fetched(
    tmp_path: Path, recalled: bool
) -> None:
    asked, answered = asyncio.Event(), asyncio.Event()

    async def silent(_request: web.Request) -> web.Response:
        asked.set()
        try:
            await asyncio.sleep(60)
        finally:
            answered.set()
        return web.Response()

    async with serve(silent) as url, member(tmp_path) as joined:
        prompt = {
            "1": node("LoadImage", image=f"{url}/slow.png"),
            "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
        }
        assign = await joined.gateway.assign(prompt)
        await asyncio.wait_for(asked.wait(), 20)
        if recalled:
            await joined.gateway.say(Recall(uid=assign.uid, lease=assign.lease))
            back = await joined.gateway.heard(Returned, assign.uid)
            assert not back.counted
            assert not joined.gateway.all(Finished)
        else:
            await joined.gateway.say(Cancel(uid=assign.uid, lease=assign.lease))
            assert (await joined.gateway.ended(assign)).state == "cancelled"
        await asyncio.wait_for(answered.wait(), 20)
        assert not await joined.agent.executed()


async def test_the_next_task_is_in_the_engine_while_one_runs(joined: Member) -> None:
    """The device goes on with it without waiting for anybody."""
    first = await joined.gateway.assign(sleep(60))
    await joined.gateway.heard(Started, first.uid)
    second = await joined.gateway.assign(picture())

    async def both() -> bool:
        return await joined.queue() == (1, 1)

    await until(both)
    await joined.gateway.say(Cancel(uid=first.uid, lease=first.lease))
    assert (await joined.gateway.ended(second)).state == "succeeded"


async def test_a_task_that_has_not_begun_is_given_back(joined: Member) -> None:
    first = await joined.gateway.assign(sleep(60))
    await joined.gateway.heard(Started, first.uid)
    second = await joined.gateway.assign(sleep(60))

    async def both() -> bool:
        return await joined.queue() == (1, 1)

    await until(both)
    await joined.gateway.say(Recall(uid=first.uid, lease=first.lease))
    await joined.gateway.say(Recall(uid=second.uid, lease=second.lease))
    back = await joined.gateway.heard(Returned, second.uid)
    assert (back.counted, back.lease, back.error) == (False, second.lease, None)
    await joined.gateway.holds(first)
    assert await joined.queue() == (1, 0)
    # What has begun is not given back.
    assert not joined.gateway.all(Returned, first.uid)
    await joined.gateway.say(Cancel(uid=first.uid, lease=first.lease))
    await joined.gateway.ended(first)


async def test_a_task_that_runs_too_long_for_its_service(tmp_path: Path) -> None:
    async with member(tmp_path) as joined:
        at = joined.gateway
        at.welcome = messages.Welcome(
            instance="i-1", service="t", renew_seconds=0.1, lease_seconds=30, task_timeout=0.2
        )
        await at.cut()
        await at.connected(2)
        assign = await at.assign(sleep(60))
        ended = await at.ended(assign)
        assert ended.error is not None
        assert ended.error["code"] == "task_timeout"
        assert "0.2 s" in ended.error["message"]
        assert "service" in ended.error["hint"]


async def test_outputs_are_sent_where_the_storage_is_elsewhere(tmp_path: Path) -> None:
    async with member(tmp_path, shares=False) as joined:
        at = joined.gateway
        assert not at.all(messages.Hello)[0].shares_storage
        at.upload_answers = [503, 409]
        content = "ä long text\n" * 200_000
        assign = await at.assign(text_file(content))
        ended = await at.ended(assign)
        assert ended.state == "succeeded", ended.error
        entry = ended.nodes["1"].images[0]
        assert at.files == {(assign.folder, entry["filename"]): content.encode()}
        assert len(at.uploads) == 3
        assert entry["url"] == f"/api/outputs/{assign.folder}/{entry['filename']}"
        await at.holds()
        assert not [name for name in joined.agent.files() if "agent/outputs/" in name]


async def test_an_output_that_is_not_taken_fails_its_task(tmp_path: Path) -> None:
    async with member(tmp_path, shares=False) as joined:
        at = joined.gateway
        at.upload_answers = [507]
        ended = await at.ended(await at.assign(picture()))
        assert ended.state == "failed"
        assert ended.error is not None
        assert ended.error["code"] == "output_failed"
        assert ended.error["node_id"] == "2"
        assert "507" in ended.error["message"]
        await at.holds()
        assert not [name for name in joined.agent.files() if "agent/outputs/" in name]


async def test_a_task_is_cancelled_while_its_output_is_sent(tmp_path: Path) -> None:
    async with member(tmp_path, shares=False) as joined:
        at = joined.gateway
        at.upload_stalls = True
        assign = await at.assign(picture())
        await at.until(lambda: at.uploads)
        await at.say(Cancel(uid=assign.uid, lease=assign.lease))
        assert (await at.ended(assign)).state == "cancelled"
        at.upload_stalls = False
        # Its place in the engine is free.
        assert (await at.ended(await at.assign(picture()))).state == "succeeded"
        await at.holds()
        assert not [name for name in joined.agent.files() if "agent/outputs/" in name]


async def test_a_gateway_that_is_gone_while_an_output_is_sent(tmp_path: Path) -> None:
    async with member(tmp_path, shares=False) as joined:
        at = joined.gateway
        at.upload_stalls = True
        assign = await at.assign(picture())
        await at.until(lambda: at.uploads)
        await at.stop()
        at.upload_stalls = False
        await at.start()
        ended = await at.ended(assign)
        assert ended.state == "succeeded", ended.error
        assert len(at.files) == 1


async def test_results_that_are_too_large_to_be_told_fail_their_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MAX_MESSAGE", 20_000)
    async with member(tmp_path) as joined:
        at = joined.gateway
        ended = await at.ended(
            await at.assign({"1": node("EaselText", text="x" * 15_000, announce=False)})
        )
        assert ended.state == "succeeded"
        one = node("EaselText", text="x" * 2_500, announce=False)
        many = {str(n): node("EaselText", text=["0", 0], announce=False) for n in range(1, 10)}
        many["0"] = one
        ended = await at.ended(await at.assign(many))
        assert ended.error is not None
        assert ended.error["code"] == "output_failed"
        assert "too large" in ended.error["message"]
        await at.holds()
        assert at.connections == 1


async def test_a_shared_storage_keeps_what_others_are_writing(tmp_path: Path) -> None:
    half = tmp_path / "storage" / "easel" / "outputs" / "other.1" / ".picture.png.part"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    async with member(tmp_path) as joined:
        await joined.gateway.ended(await joined.gateway.assign(noop()))
    assert half.is_file()
