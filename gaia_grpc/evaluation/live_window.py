"""T2 and T3: the live window, leave one student out, and the alerts in it.

Each student is judged by the shipped detector with a model that was fitted and calibrated without
that student. The threshold of the alerts is chosen on the other students' judgements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from gaia_grpc.evaluation.fitting import fit_model
from gaia_grpc.evaluation.points import (
    GRID_MS,
    Log,
    Moment,
    columns,
    labelled,
    reference_detector,
    walk,
)
from gaia_grpc.evaluation.scores import Interval, bootstrap
from gaia_grpc.state.models import MODELS
from gaia_grpc.state.settings import Settings
from gaia_grpc.state.struggle import Detector
from gaia_grpc.state.struggle_machine import MEDIUM, Ladder, Machine, read_ladder, step

BASE_RATE = 0.08
THRESHOLDS = (0.15, 0.175, 0.2, 0.225, 0.25, 0.275, 0.3, 0.325, 0.35)
SHIPPED_THRESHOLD = read_ladder(Settings()).enter[MEDIUM - 1]
EXIT_SHARE = 2 / 3
COOLDOWN_MS = 300_000
GAP_MS = 300_000
LEAST_ALERTS = 5
WANTED_PRECISION = 0.3
MOST_AN_HOUR = 1.0
LEVEL = 3


def judge_left_out(logs: Mapping[str, Log], *, min_steps: int) -> dict[str, list[Moment]]:
    """Each student's moments under a model of the others."""
    settings = Settings()
    detector = reference_detector()
    plain = {
        name: list(walk(name, log, detector, min_steps=min_steps)) for name, log in logs.items()
    }
    points = columns(labelled([moment for each in plain.values() for moment in each]))
    found = {}
    for name, log in logs.items():
        rows = np.flatnonzero(points.students != name)
        model = fit_model(points, rows, version="math-1", since_level=LEVEL, base_rate=BASE_RATE)
        own = Detector(settings, {**MODELS, "math-1": model})
        found[name] = list(walk(name, log, own, min_steps=min_steps))
    return found


class Alarm(NamedTuple):
    """One alert of medium or more."""

    student: str
    at_ms: int
    label: int | None
    delay_ms: int | None
    """Since the trouble that it is about began, where the label says that there is any."""
    reset_ms: int | None
    """From the end of the trouble to the end of the alert."""


Fires = Callable[[Moment, Machine], bool]


def ladder_of(enter: float) -> Ladder:
    """The shipped ladder with another threshold of medium."""
    shipped = read_ladder(Settings())
    low, _, high, critical = shipped.enter
    left = (min(shipped.exit[0], enter * EXIT_SHARE / 2), enter * EXIT_SHARE)
    return replace(
        shipped,
        enter=(min(low, enter), enter, max(high, enter), max(critical, enter)),
        exit=(*left, *shipped.exit[2:]),
    )


def alarms_of_model(moments: Sequence[Moment], enter: float) -> list[Alarm]:
    """What the episode machine raises on one student, with the cooldown."""
    ladder = ladder_of(enter)
    machine = Machine()

    def up(moment: Moment) -> bool:
        step(machine, moment.at_ms, moment.estimate, ladder)
        return machine.severity >= MEDIUM

    def reset() -> None:
        machine.severity, machine.below_ms, machine.high_ms = 0, -1, -1
        machine.since_ms[:] = [-1] * len(machine.since_ms)

    return alarms(moments, up, reset)


def alarms(
    moments: Sequence[Moment], up: Callable[[Moment], bool], reset: Callable[[], None]
) -> list[Alarm]:
    """Alerts of a predicate that is asked at each moment, with the cooldown after each."""
    found: list[Alarm] = []
    open_from: Moment | None = None
    closed_ms = before_ms = -(10**15)
    trouble_ms: int | None = None
    for moment in moments:
        if moment.at_ms - before_ms > GAP_MS:
            reset()
            trouble_ms = None
            if open_from is not None:
                closed_ms, open_from = before_ms, None
        before_ms = moment.at_ms
        if moment.label == 1 and trouble_ms is None:
            trouble_ms = moment.at_ms
        elif moment.label == 0:
            trouble_ms = None
        raised = up(moment)
        if open_from is None and raised and moment.at_ms - closed_ms >= COOLDOWN_MS:
            open_from = moment
            delay_ms = None if trouble_ms is None else moment.at_ms - trouble_ms
            found.append(Alarm(moment.student, moment.at_ms, moment.label, delay_ms, None))
        elif open_from is not None and not raised:
            closed_ms, open_from = moment.at_ms, None
            reset_ms = None if trouble_ms is not None else _since(moments, moment)
            found[-1] = found[-1]._replace(reset_ms=reset_ms)
    return found


def _since(moments: Sequence[Moment], last: Moment) -> int | None:
    """How long before `last` a label was 1 for the last time."""
    bad = [each.at_ms for each in moments if each.label == 1 and each.at_ms <= last.at_ms]
    return last.at_ms - bad[-1] if bad and last.at_ms - bad[-1] < 1_800_000 else None


@dataclass(frozen=True, slots=True)
class AlarmScore:
    """Alerts of one rule."""

    name: str
    count: int
    an_hour: Interval
    precision: Interval
    delay_s: float
    reset_s: float


def hours(moments: Sequence[Moment]) -> float:
    """Time in which the model may speak."""
    return sum(moment.known for moment in moments) * GRID_MS / 3_600_000


def precision_of(found: Sequence[Alarm]) -> float:
    """Share of the alerts with a label that were right."""
    known = [alarm.label for alarm in found if alarm.label is not None]
    return float(np.mean(known)) if known else float("nan")


def alarms_nested(judged: Mapping[str, list[Moment]]) -> tuple[list[Alarm], dict[str, float]]:
    """The alerts of each student at the threshold that is best for the others."""
    table = {
        (name, enter): alarms_of_model(moments, enter)
        for name, moments in judged.items()
        for enter in THRESHOLDS
    }
    chosen = {}
    for name in judged:
        others = [each for each in judged if each != name]
        time_h = sum(hours(judged[each]) for each in others)
        best = (-1.0, THRESHOLDS[-1])
        for enter in THRESHOLDS:
            found = [alarm for each in others for alarm in table[each, enter]]
            precision = precision_of(found)
            if len(found) < LEAST_ALERTS or len(found) / time_h > MOST_AN_HOUR:
                continue
            if precision >= WANTED_PRECISION:
                best = (precision, enter)
                break
            best = max(best, (precision, enter))
        chosen[name] = best[1]
    return [alarm for name in judged for alarm in table[name, chosen[name]]], chosen


def score_alarms(
    name: str, judged: Mapping[str, list[Moment]], found: Sequence[Alarm]
) -> AlarmScore:
    """Rate and precision with intervals over students, delay and reset as medians."""
    students = list(judged)
    time_h = {student: hours(judged[student]) for student in students}
    by_student = {student: [a for a in found if a.student == student] for student in students}
    groups = np.array(students)

    def rate(rows: np.ndarray) -> float:
        return sum(len(by_student[groups[at]]) for at in rows) / sum(
            time_h[groups[at]] for at in rows
        )

    def precision(rows: np.ndarray) -> float:
        return precision_of([alarm for at in rows for alarm in by_student[groups[at]]])

    delays = [alarm.delay_ms for alarm in found if alarm.delay_ms is not None]
    resets = [alarm.reset_ms for alarm in found if alarm.reset_ms is not None]
    return AlarmScore(
        name,
        len(found),
        bootstrap(groups, rate),
        bootstrap(groups, precision),
        float(np.median(delays)) / 1_000 if delays else float("nan"),
        float(np.median(resets)) / 1_000 if resets else float("nan"),
    )


def no_reset() -> None:
    """Of rules without memory."""


def original_alarms(moments: Sequence[Moment]) -> list[Alarm]:
    """The original's error rule (3 or more), with the same cooldown."""
    return alarms(moments, lambda moment: moment.original >= 0.85, no_reset)


def lumilo(moment: Moment) -> float:
    """Share of the last 10 attempts that went wrong."""
    return float(moment.estimate.reading.values[1] or 0.0)


def lumilo_alarms(moments: Sequence[Moment]) -> list[Alarm]:
    """At most 3 of the last 10 right, with the same cooldown."""
    return alarms(moments, lambda moment: moment.known and lumilo(moment) >= 0.7, no_reset)
