"""What answers to health checks add up to: against a model that counts, and the edges by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from easel.fleet.health import Checks, Counted
from easel.services.model import EngineSpec, HealthCheck, ServiceSpec

BAD = "answered 500"


def check(**fields: float) -> HealthCheck:
    whole: dict[str, float] = {"period_seconds": 10, **fields}
    return HealthCheck(path="/", **whole)  # type: ignore[arg-type]


def spec(**checks: HealthCheck) -> ServiceSpec:
    engine = EngineSpec(kind="builtin")
    return ServiceSpec(name="draw", edition="api", engine=engine, **checks)  # type: ignore[arg-type]


@given(
    st.lists(st.booleans(), max_size=60),
    st.integers(1, 4),
    st.integers(1, 4),
    st.booleans(),
)
def test_it_turns_after_enough_answers_in_a_row(
    answers: list[bool], success: int, failure: int, passed: bool
) -> None:
    one = check(success_threshold=success, failure_threshold=failure)
    counted = Counted(one, passed=passed, begin=0)
    expected, row = passed, 0
    for number, good in enumerate(answers):
        counted.answered(number * 10_000, None if good else BAD)
        row = 0 if good == expected else row + 1
        if row == (success if good else failure):
            expected, row = good, 0
        assert counted.passed is expected
        assert counted.due == (number + 1) * 10_000


def test_nothing_to_ask() -> None:
    checks = Checks(spec(), since=0)
    assert not checks.any
    assert (checks.waiting, checks.ill, checks.next_due()) == (None, None, None)


def test_startup_comes_first_and_lets_in() -> None:
    checks = Checks(
        spec(
            startup_check=check(initial_delay_seconds=60, failure_threshold=2),
            liveness_check=check(initial_delay_seconds=30),
            readiness_check=check(),
        ),
        since=1000,
    )
    assert [kind for kind, _ in checks.due(1000)] == ["startup"]
    for at in (1000, 11_000, 21_000):
        checks.answered("startup", at, BAD)
    assert checks.waiting == f"its startup check has not passed yet: {BAD}"
    assert checks.ill is None, "how long a start may take is the controller's to say"
    checks.answered("startup", 31_000, None)
    assert "readiness" in (checks.waiting or "")
    assert {kind for kind, _ in checks.due(31_000)} == {"liveness", "readiness"}
    checks.answered("readiness", 31_000, None)
    assert checks.waiting is None


def test_liveness_waits_for_its_delay() -> None:
    checks = Checks(spec(liveness_check=check(initial_delay_seconds=30)), since=0)
    assert list(checks.due(29_999)) == []
    assert [kind for kind, _ in checks.due(30_000)] == ["liveness"]


def test_liveness_ends_an_instance_after_failures_in_a_row() -> None:
    checks = Checks(spec(liveness_check=check(failure_threshold=2)), since=0)
    for at, problem in enumerate([BAD, None, BAD]):
        checks.answered("liveness", at, problem)
        assert checks.ill is None
    checks.answered("liveness", 4, BAD)
    assert checks.ill == f"its liveness check failed 2 times in a row: {BAD}"
    assert checks.waiting is None


def test_readiness_takes_out_of_traffic_and_back() -> None:
    checks = Checks(
        spec(readiness_check=check(failure_threshold=2, success_threshold=2)), since=0, adopted=True
    )
    assert checks.waiting is None, "it served before this process came"
    checks.answered("readiness", 0, BAD)
    assert checks.waiting is None
    checks.answered("readiness", 1, BAD)
    assert checks.waiting == f"its readiness check does not pass: {BAD}"
    checks.answered("readiness", 2, None)
    assert checks.waiting is not None
    checks.answered("readiness", 3, None)
    assert checks.waiting is None
    assert checks.ill is None
