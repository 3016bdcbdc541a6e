"""The plan of a simulated class keeps what the demo counts on."""

from __future__ import annotations

from collections import defaultdict

import pytest

from gaia_grpc.classroom.lessons import (
    APPS,
    METRICS_PER_STUDENT_MINUTE,
    WINDOW_MS,
    ClassPlan,
    plan_class,
    to_micro,
)

SEEDS = range(25)


def errors_by_key(plan: ClassPlan) -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for each in plan.measurements:
        if each.metric_type == "error":
            found[each.student_id, each.app_name].append(each.at_ms)
    return {key: sorted(times) for key, times in found.items()}


def most_in_60_s(times: list[int]) -> int:
    return max(sum(1 for other in times if end - 60_000 < other <= end) for end in times)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_guides_class_has_exactly_6000_metrics_in_5_minutes(seed: int) -> None:
    plan = plan_class(seed=seed, students=30, minutes=5, bursts=5)
    assert len(plan.measurements) == 6_000
    assert len(plan.students) == 30
    assert all(0 < each.at_ms <= 300_000 for each in plan.measurements)
    times = [each.at_ms for each in plan.measurements]
    assert times == sorted(times)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_student_uses_three_apps(seed: int) -> None:
    plan = plan_class(seed=seed, students=30, minutes=5, bursts=5)
    for student in plan.students:
        assert {each.app_name for each in plan.of_student(student)} == set(APPS)
        assert len(plan.of_student(student)) == 5 * METRICS_PER_STUDENT_MINUTE


@pytest.mark.parametrize("seed", SEEDS)
def test_only_the_injected_bursts_reach_three_errors_in_a_minute(seed: int) -> None:
    plan = plan_class(seed=seed, students=30, minutes=5, bursts=5)
    frustrated = {key for key, times in errors_by_key(plan).items() if most_in_60_s(times) >= 3}
    assert frustrated == {(burst.student_id, burst.app_name) for burst in plan.bursts}
    assert len(frustrated) == 5
    for burst in plan.bursts:
        times = errors_by_key(plan)[burst.student_id, burst.app_name]
        assert times == list(burst.times_ms)
        assert len(times) >= 5
        assert burst.peaks_at_ms - burst.times_ms[0] < 60_000


def test_the_bursts_are_in_different_students() -> None:
    plan = plan_class(seed=7, students=30, minutes=5, bursts=5)
    assert len({burst.student_id for burst in plan.bursts}) == 5


def test_the_same_seed_gives_the_same_plan_and_another_seed_another() -> None:
    assert plan_class(seed=3, students=30, minutes=5, bursts=5) == plan_class(
        seed=3, students=30, minutes=5, bursts=5
    )
    assert (
        plan_class(seed=3, students=30, minutes=5, bursts=5).measurements
        != plan_class(seed=4, students=30, minutes=5, bursts=5).measurements
    )


def test_the_oracle_counts_every_metric_of_a_5_minute_class() -> None:
    plan = plan_class(seed=1, students=30, minutes=5, bursts=5)
    totals = plan.window_totals(plan.length_ms)
    assert sum(total.count for total in totals.values()) == 6_000
    assert sum(total.sum_micro for total in totals.values()) == sum(
        to_micro(each.value) for each in plan.measurements
    )
    assert sum(plan.accepted_totals().values()) == 6_000


def test_the_window_is_half_open() -> None:
    plan = plan_class(seed=1, students=3, minutes=7, bursts=0)
    first, last = plan.measurements[0], plan.measurements[-1]
    at_begin = plan.window_totals(first.at_ms + WINDOW_MS)
    just_before = plan.window_totals(first.at_ms + WINDOW_MS - 1)
    key = (first.student_id, first.app_name, first.metric_type)
    inside = [each for each in plan.measurements if each.at_ms <= first.at_ms + WINDOW_MS]
    assert sum(total.count for total in at_begin.values()) == len(inside) - 1
    assert just_before[key].count >= 1
    assert sum(t.count for t in plan.window_totals(last.at_ms).values()) == sum(
        1 for each in plan.measurements if each.at_ms > last.at_ms - WINDOW_MS
    )


def test_bursts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="4 bursts need 4 students"):
        plan_class(seed=1, students=3, minutes=5, bursts=4)
