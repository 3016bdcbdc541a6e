"""Evaluation points of the live window (T2): each student's log, looked at every 20 s.

A point is where the model may speak (3 answers or hints, a minute of activity, active now) and at
least `MIN_STEPS` steps begin in the next 5 minutes. Its label says whether those go badly: 1.5 or
more errors and hints a step, or 40 % or fewer right at the first try.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gaia_grpc.classroom.recordings import RecordedMetric, RecordingFormat, read_recording
from gaia_grpc.evaluation.data import COGNITIVE_TUTOR, count, rows, time_ms
from gaia_grpc.state.features import FEATURES, WINDOW_MS, Reading
from gaia_grpc.state.models import MODELS
from gaia_grpc.state.packing import MICRO
from gaia_grpc.state.settings import Settings
from gaia_grpc.state.struggle import Detector, Estimate
from gaia_grpc.state.windows import StudentWindow

APP = "math"
GRID_MS = 20_000
MIN_STEPS = 10
BAD_RATE, BAD_SHARE = 1.5, 0.4
ORIGINAL_HESITATION_MS = 30_000


def reference_detector() -> Detector:
    """Collects what models are fitted to; not by the shipped model, or a fit would depend on the
    one before (where a pace is absent, the long-run level takes the cohort's)."""
    return Detector(Settings(), {**MODELS, "math-1": MODELS["default-1"]})


class Step(NamedTuple):
    """One step of a problem."""

    begin_ms: int
    trouble: int
    """Errors and hints."""
    first_try: int


class Moment(NamedTuple):
    """A look at one student."""

    student: str
    at_ms: int
    estimate: Estimate
    level_sums: tuple[int, ...]
    level_count: int
    known: bool
    """Whether the model may speak."""
    label: int | None
    """1 where the next 5 minutes go badly; None where there are too few steps in them."""
    original: float
    """What the original's rules claim."""


@dataclass(frozen=True, slots=True)
class Log:
    """One student."""

    metrics: Sequence[RecordedMetric]
    steps: Sequence[Step]


def read_logs(folder: Path) -> Mapping[str, Log]:
    """The students of the Cognitive Tutor log, by name."""
    path = folder / COGNITIVE_TUTOR
    recording = read_recording(path, RecordingFormat.COGNITIVE_TUTOR)
    steps: dict[str, list[Step]] = {name: [] for name in recording.students}
    for row in rows(path):
        begin_ms = time_ms(row["First Transaction Time"])
        if begin_ms is not None and row["Anon Student Id"] in steps:
            trouble = count(row["Incorrects"]) + count(row["Hints"])
            first_try = count(row["Correct First Attempt"])
            steps[row["Anon Student Id"]].append(Step(begin_ms, trouble, first_try))
    metrics: dict[str, list[RecordedMetric]] = {name: [] for name in recording.students}
    for metric in recording.metrics:
        metrics[metric.student_id].append(metric)
    return {name: Log(metrics[name], sorted(steps[name])) for name in recording.students}


def walk(
    name: str, log: Log, detector: Detector, *, min_steps: int = MIN_STEPS
) -> Iterator[Moment]:
    """The looks at a student, from its first metric to its last; silent stretches are skipped."""
    window = StudentWindow()
    metrics = log.metrics
    place = 0
    at_ms = -(-metrics[0].at_ms // GRID_MS) * GRID_MS
    while at_ms <= metrics[-1].at_ms + GRID_MS:
        while place < len(metrics) and metrics[place].at_ms <= at_ms:
            metric = metrics[place]
            value = array("q", [round(metric.value * MICRO)])
            window.add(metric.metric_type, [metric.at_ms], value, at_ms - 2 * WINDOW_MS)
            place += 1
        estimate = detector.evaluate(window, APP, at_ms)
        reading = estimate.reading
        if reading.decisions + reading.hints > 0:
            level = window.level
            yield Moment(
                student=name,
                at_ms=at_ms,
                estimate=estimate,
                level_sums=tuple(level.sums_micro) if level is not None else (),
                level_count=level.count if level is not None else 0,
                known=may_speak(reading),
                label=label_of(log.steps, at_ms, min_steps),
                original=original_rule(window, reading, at_ms),
            )
            detector.learn(window, estimate, at_ms)
        elif place < len(metrics):
            at_ms = max(at_ms, metrics[place].at_ms // GRID_MS * GRID_MS)
        at_ms += GRID_MS


def may_speak(reading: Reading) -> bool:
    """The model's guards but for failure: students that do well are judged too."""
    enough = reading.decisions + reading.hints >= 3 and reading.activity_ms >= 60_000
    return enough and reading.active


def label_of(steps: Sequence[Step], at_ms: int, min_steps: int) -> int | None:
    """Whether the next 5 minutes go badly."""
    first = bisect_right(steps, at_ms, key=_begin)
    following = steps[first : bisect_right(steps, at_ms + WINDOW_MS, key=_begin)]
    if len(following) < min_steps:
        return None
    rate = sum(step.trouble for step in following) / len(following)
    share = sum(step.first_try for step in following) / len(following)
    return int(rate >= BAD_RATE or share <= BAD_SHARE)


def _begin(step: Step) -> int:
    return step.begin_ms


def original_rule(window: StudentWindow, reading: Reading, at_ms: int) -> float:
    """The original's constants on the same 5 minutes: 5 errors .95, 3 errors .85, a pause .65."""
    if reading.wrong >= 5:
        return 0.95
    if reading.wrong >= 3:
        return 0.85
    series = window.series.get("response_time")
    if series is not None:
        first, last = series.range(at_ms - WINDOW_MS, at_ms)
        if any(value > ORIGINAL_HESITATION_MS * MICRO for value in series.values[first:last]):
            return 0.65
    return 0.0


@dataclass(frozen=True, slots=True)
class Points:
    """Moments as columns, for fitting."""

    students: np.ndarray
    labels: np.ndarray
    values: np.ndarray
    """A row a moment, a column a feature; nan where it says nothing."""
    active: np.ndarray
    level_sums: np.ndarray
    level_counts: np.ndarray
    known: np.ndarray
    """Answers and hints in the window."""
    right: np.ndarray
    troubled: np.ndarray


def columns(moments: Sequence[Moment]) -> Points:
    """Moments that have a label."""
    readings = [moment.estimate.reading for moment in moments]
    size = len(FEATURES)
    sums = [moment.level_sums or (0,) * size for moment in moments]
    return Points(
        students=np.array([moment.student for moment in moments]),
        labels=np.array([moment.label for moment in moments], dtype=float),
        values=np.array(
            [[np.nan if value is None else value for value in each.values] for each in readings]
        ),
        active=np.array([each.active for each in readings]),
        level_sums=np.array(sums, dtype=float) / MICRO,
        level_counts=np.array([moment.level_count for moment in moments], dtype=float),
        known=np.array([each.decisions + each.hints for each in readings]),
        right=np.array([each.decisions - each.wrong for each in readings]),
        troubled=np.array([each.wrong > 0 or each.hints > 0 for each in readings]),
    )


def labelled(moments: Sequence[Moment]) -> list[Moment]:
    """Those that are judged."""
    return [moment for moment in moments if moment.known and moment.label is not None]
