"""What the students of a simulated class do: a plan made from a seed, with its own oracle.

The plan is the guide's classroom: every student works 100 s at a time in each of three apps and
makes 40 measurements a minute, so that 30 students make 20 a second and 6,000 in 5 minutes. Some
student-app pairs get an injected burst of errors. All others make at most two errors in any 60 s,
so that nothing but an injected burst may raise an alert.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

APPS = ("typing", "math", "reading")

METRICS_PER_STUDENT_MINUTE = 40
STINT_MS = 100_000
"""How long a student stays in one app."""
WINDOW_MS = 300_000
ERROR_GAP_MS = 45_000
"""Least time between two errors of a student who was not chosen: at most two in any 60 s."""
BURST_GAP_MS = 5_000
BURST_ERRORS_MIN = 5
BURST_ERRORS_MAX = 8
MICRO = 1_000_000

_ORDINARY: dict[str, tuple[tuple[str, float, float], ...]] = {
    # app: (metric type, least, most); the values are those of the guide's normal pattern
    "typing": (("keypress", 1.0, 1.0), ("response_time", 800.0, 1_199.0), ("accuracy", 85.0, 99.0)),
    "math": (("response_time", 800.0, 1_199.0), ("accuracy", 85.0, 99.0), ("correct", 1.0, 1.0)),
    "reading": (
        ("response_time", 800.0, 1_199.0),
        ("accuracy", 85.0, 99.0),
        ("idle", 1.0, 9.0),
    ),
}

Key = tuple[str, str, str]
"""(student_id, app_name, metric_type)."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One metric of the plan; `at_ms` counts from the begin of class, 0 < at_ms <= its length."""

    at_ms: int
    student_id: str
    app_name: str
    metric_type: str
    value: float
    injected: bool = False


@dataclass(frozen=True, slots=True)
class Burst:
    """One injected frustration event."""

    student_id: str
    app_name: str
    times_ms: tuple[int, ...]
    """When its errors come."""

    @property
    def opens_at_ms(self) -> int:
        """Time of the third error, which makes `repeated_errors` true."""
        return self.times_ms[2]

    @property
    def peaks_at_ms(self) -> int:
        """Time of the fifth error, which makes `excessive_errors` true."""
        return self.times_ms[4]


@dataclass(frozen=True, slots=True)
class Totals:
    """What one key must hold: exact, since values are counted in millionths."""

    count: int = 0
    sum_micro: int = 0

    def plus(self, value: float) -> Totals:
        """These totals and one more value."""
        return Totals(self.count + 1, self.sum_micro + to_micro(value))


@dataclass(frozen=True, slots=True)
class ClassPlan:
    """Everything that will happen in class, in the order of time."""

    seed: int
    length_ms: int
    students: tuple[str, ...]
    measurements: tuple[Measurement, ...]
    bursts: tuple[Burst, ...]

    def of_student(self, student_id: str) -> tuple[Measurement, ...]:
        """What one student does, in the order of time."""
        return tuple(each for each in self.measurements if each.student_id == student_id)

    def window_totals(self, end_ms: int) -> dict[Key, Totals]:
        """What the rolling windows that end at `end_ms` of class must hold."""
        totals: dict[Key, Totals] = defaultdict(Totals)
        for each in self.measurements:
            if end_ms - WINDOW_MS < each.at_ms <= end_ms:
                key = (each.student_id, each.app_name, each.metric_type)
                totals[key] = totals[key].plus(each.value)
        return dict(totals)

    def accepted_totals(self) -> dict[tuple[str, str], int]:
        """How many measurements of each student in each app there are in the whole class."""
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for each in self.measurements:
            counts[each.student_id, each.app_name] += 1
        return dict(counts)


def to_micro(value: float) -> int:
    """The value in millionths, as the cluster keeps it."""
    return round(value * MICRO)


def plan_class(*, seed: int, students: int, minutes: int, bursts: int) -> ClassPlan:
    """The plan of a class; the same arguments give the same plan.

    Raises `ValueError` where so many bursts do not fit.
    """
    if students < 1 or minutes < 1 or bursts < 0:
        raise ValueError("a class needs at least one student and one minute")
    rng = random.Random(f"gaia-class:{seed}:{students}:{minutes}:{bursts}")
    names = tuple(f"student-{number:02d}" for number in range(1, students + 1))
    length_ms = minutes * 60_000
    chosen = _choose_bursts(rng, names, length_ms, bursts)
    found: list[Measurement] = []
    for name in names:
        mine = [burst for burst in chosen if burst.student_id == name]
        found += _plan_student(rng, name, length_ms, mine)
    found.sort(key=lambda each: (each.at_ms, each.student_id))
    return ClassPlan(seed, length_ms, names, tuple(found), tuple(chosen))


def stints(student_number: int, length_ms: int) -> list[tuple[int, int, str]]:
    """(begin, end, app) of each stint; neighbours begin with different apps."""
    return [
        (begin, min(begin + STINT_MS, length_ms), APPS[(student_number + place) % len(APPS)])
        for place, begin in enumerate(range(0, length_ms, STINT_MS))
    ]


def _choose_bursts(
    rng: random.Random, names: Sequence[str], length_ms: int, count: int
) -> list[Burst]:
    """Bursts in different students, spread over the class, each well inside one stint."""
    longest_ms = BURST_ERRORS_MAX * BURST_GAP_MS + 5_000
    places: dict[str, list[tuple[int, int, str]]] = {}
    for number, name in enumerate(names):
        fitting = [
            stint for stint in stints(number, length_ms) if stint[1] - stint[0] >= longest_ms
        ]
        if fitting:
            places[name] = fitting
    if count > len(places):
        raise ValueError(f"{count} bursts need {count} students with at least 45 s in one app")
    chosen: list[Burst] = []
    for place, name in enumerate(sorted(rng.sample(sorted(places), count))):
        # In turn from the beginning, the middle and the end of class.
        begin_ms, end_ms, app_name = places[name][place % len(places[name])]
        errors = rng.randint(BURST_ERRORS_MIN, BURST_ERRORS_MAX)
        first_ms = begin_ms + rng.randrange(1_000, end_ms - begin_ms - errors * BURST_GAP_MS - 500)
        times = tuple(first_ms + step * BURST_GAP_MS for step in range(errors))
        chosen.append(Burst(name, app_name, times))
    return chosen


def _plan_student(
    rng: random.Random, name: str, length_ms: int, bursts: Sequence[Burst]
) -> list[Measurement]:
    """Exactly METRICS_PER_STUDENT_MINUTE a minute, the errors of the bursts among them."""
    number = int(name.rpartition("-")[2]) - 1
    injected = [
        Measurement(at_ms, name, burst.app_name, "error", 1.0, injected=True)
        for burst in bursts
        for at_ms in burst.times_ms
    ]
    count = length_ms * METRICS_PER_STUDENT_MINUTE // 60_000 - len(injected)
    times = sorted(rng.randint(1, length_ms) for _ in range(count))
    plan = stints(number, length_ms)
    next_error_ms = rng.randrange(ERROR_GAP_MS) + 1
    ordinary: list[Measurement] = []
    for at_ms in times:
        app_name = next(app for begin, end, app in plan if begin < at_ms <= end)
        burst_here = any(burst.app_name == app_name for burst in bursts)
        if at_ms >= next_error_ms and not burst_here:
            ordinary.append(Measurement(at_ms, name, app_name, "error", 1.0))
            next_error_ms = at_ms + ERROR_GAP_MS + rng.randrange(ERROR_GAP_MS)
            continue
        metric_type, least, most = rng.choice(_ORDINARY[app_name])
        value = round(rng.uniform(least, most), 3)
        ordinary.append(Measurement(at_ms, name, app_name, metric_type, value))
    return ordinary + injected
