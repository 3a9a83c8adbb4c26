"""Liveness, back-off, log lines, waiting events: pure, so tried without clocks or processes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from easel.comfy import backlog, log_tail
from easel.comfy.answers import QueueSnapshot
from easel.comfy.backlog import Backlog
from easel.comfy.ended import ended_error
from easel.comfy.events import Event, Executing, ExecutionSuccess, Preview, Progress, Unknown
from easel.comfy.liveness import IDLE_WORKER_SECONDS, Backoff, Liveness
from easel.comfy.log_tail import LogTail
from easel.settings import SupervisionSettings

SETTINGS = SupervisionSettings(
    silent_timeout=30, stall_timeout=600, restart_backoff=1, restart_backoff_max=60
)
BUSY = QueueSnapshot(("a",), ("b",))
STUCK = QueueSnapshot((), ("b", "c"))


def test_silence_counts_from_the_last_answer() -> None:
    liveness = Liveness(SETTINGS, 100)
    liveness.answered(110)
    for now in (115, 120, 139):
        liveness.unanswered(refused=False)
        assert liveness.verdict(now, None) is None
    assert liveness.verdict(140, None) == "has not answered for 30 s"
    liveness.answered(141)
    assert liveness.verdict(141, None) is None


def test_a_pause_of_our_own_is_no_silence_of_the_engine() -> None:
    liveness = Liveness(SETTINGS, 0)
    liveness.unanswered(refused=False)
    assert liveness.verdict(5000, None) is None


def test_a_process_that_no_longer_listens() -> None:
    liveness = Liveness(SETTINGS, 0)
    for refused in (True, False, True):
        liveness.unanswered(refused=refused)
        assert not liveness.refused
    liveness.unanswered(refused=True)
    assert liveness.refused


def test_a_prompt_of_ours_that_does_not_move() -> None:
    liveness = Liveness(SETTINGS, 0)
    assert liveness.verdict(1, 599) is None
    assert liveness.verdict(1, 601) == "runs a prompt that has not moved for 601 s"


def test_a_dead_worker() -> None:
    liveness = Liveness(SETTINGS, 0)
    liveness.queue(STUCK, 10)
    liveness.queue(QueueSnapshot((), ("b", "c", "d")), 15)  # more and more wait
    assert liveness.verdict(9.9 + IDLE_WORKER_SECONDS, None) is None
    assert "worker is dead" in (liveness.verdict(10 + IDLE_WORKER_SECONDS, None) or "")
    liveness.queue(BUSY, 30)
    assert liveness.verdict(31, None) is None
    liveness.queue(STUCK, 40)
    liveness.queue(QueueSnapshot((), ("c",)), 49)  # the head was taken
    assert liveness.verdict(51, None) is None


def test_pauses_double_up_to_the_longest_and_are_forgotten() -> None:
    backoff = Backoff(SETTINGS)
    pauses = [backoff.pause(5) for _ in range(9)]
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert [backoff.pause(60), backoff.pause(1)] == [0, 1]


@given(st.lists(st.floats(0, 59.9), min_size=2, max_size=200))
def test_pauses_in_a_row_never_shrink(lives: list[float]) -> None:
    backoff = Backoff(SETTINGS)
    pauses = [backoff.pause(life) for life in lives]
    assert all(earlier <= later <= 60 for earlier, later in pairwise(pauses))


def shown(text: bytes) -> list[str]:
    """What a terminal shows, line by line, of text without line feeds left open."""
    lines = []
    for line in text.split(b"\n"):
        parts = [part for part in line.split(b"\r") if part]
        lines.append((parts[-1] if parts else b"").decode(errors="replace"))
    return lines


@given(st.lists(st.text("ab\r\né", max_size=12).map(str.encode), max_size=20))
def test_lines_do_not_depend_on_how_output_was_cut(pieces: list[bytes]) -> None:
    tail = LogTail(10_000)
    for piece in pieces:
        tail.feed(piece)
    tail.finish()
    expected = shown(b"".join(pieces))
    assert tail.tail() == expected[: None if expected[-1] else -1]


def test_long_lines_and_long_logs_are_bounded() -> None:
    lines: list[str] = []
    tail = LogTail(3, lines.append)
    for _ in range(100):
        tail.feed(b"x" * 10_000)
    assert len(tail.tail()[0]) < log_tail.LONGEST + 5
    tail.feed(b"\n1\n2\n3\r4")
    assert tail.tail() == ["x" * log_tail.LONGEST + log_tail.CUT, "1", "2", "4"]
    tail.feed(b"\n")
    assert tail.tail() == ["1", "2", "4"]
    assert tail.tail(1) == ["4"]
    assert tail.tail(0) == []
    assert len(lines) == 4


events = st.one_of(
    st.builds(Progress, st.just("p"), st.sampled_from("123"), st.floats(0, 9), st.just(9.0)),
    st.builds(Executing, st.just("p"), st.sampled_from(["1", "2", "3", None])),
    st.builds(Preview, st.just("p"), st.sampled_from(["image/jpeg", "image/png"]), st.binary()),
    st.builds(Unknown, st.just("p"), st.just("custom"), st.integers()),
    st.just(ExecutionSuccess("p")),
)


@given(st.lists(events, max_size=60), st.integers(1, 4))
def test_a_reader_in_time_gets_all_and_a_late_one_the_latest(
    sent: list[Event], repeat: int
) -> None:
    waiting = Backlog()
    for event in sent:
        waiting.append(event)
    got = [waiting.popleft() for _ in range(len(waiting))]
    assert got == sent
    for _ in range(repeat * backlog.CROWDED):
        for event in sent:
            waiting.append(event)
    late = [waiting.popleft() for _ in range(len(waiting))]
    ends = sum(isinstance(event, ExecutionSuccess) for event in sent) * repeat * backlog.CROWDED
    assert sum(isinstance(event, ExecutionSuccess) for event in late) == ends
    for kind in (Progress, Executing):
        for node in ("1", "2", "3", None):
            last = [e for e in sent if isinstance(e, kind) and e.node == node][-1:]
            assert [e for e in late if isinstance(e, kind) and e.node == node][-1:] == last


def test_pictures_that_wait_are_bounded_in_bytes() -> None:
    waiting = Backlog()
    for number in range(20):
        waiting.append(Preview("p", "image/png", bytes([number]) * 10_000_000))
    kept = [waiting.popleft() for _ in range(len(waiting))]
    assert sum(len(event.data) for event in kept if isinstance(event, Preview)) <= (
        backlog.PICTURE_BYTES
    )
    assert isinstance(kept[-1], Preview)
    assert kept[-1].data[:1] == b"\x13"


def test_ends_in_words() -> None:
    assert "exit code 3" in str(ended_error(3, []))
    assert "SIGABRT" in str(ended_error(-6, []))
    assert "signal 99" in str(ended_error(-99, []))
    assert "command" in (ended_error(127, []).hint or "")
    assert ended_error(1, ["fine"]).hint is None
    taken = ended_error(1, ["OSError: [Errno 98] error while attempting: address already in use"])
    assert "port is taken" in (taken.hint or "")
