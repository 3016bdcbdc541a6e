"""T1: who will spin the wheels, after 3 answers to one skill (ASSISTments 2009-10).

A student masters a skill with 3 right answers in a row, and spins the wheels with 10 answers
without. Those that are undecided after K answers are told apart by the features of the window that
ends with the K-th answer, 10-fold, grouped by student.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gaia_grpc.evaluation.data import ASSISTMENTS, count, rows
from gaia_grpc.evaluation.scores import Score, score
from gaia_grpc.state.features import WINDOW_MS, read
from gaia_grpc.state.packing import MICRO
from gaia_grpc.state.windows import StudentWindow

MASTERY = 3
SPINNING = 10
FOLDS = 10
SHORTEST_MS, LONGEST_MS = 1_000, 60_000
"""There is no clock: answers are as far apart as the response took, within these bounds."""
RIDGE = 0.1
Answer = Mapping[str, str]


class Result(NamedTuple):
    """One K."""

    answers: int
    students: int
    base_rate: float
    model: Score
    rule: Score
    claimed: float
    """Mean claim of the original's rule where it fires."""
    right: float
    """Share of these that it is right about."""
    labels: np.ndarray
    scores: np.ndarray


def sequences(folder: Path) -> dict[tuple[str, str], list[Answer]]:
    """The answers of each student to each skill, in their order."""
    found: dict[tuple[str, str], list[Answer]] = {}
    for row in sorted(rows(folder / ASSISTMENTS), key=lambda row: count(row["order_id"])):
        found.setdefault((row["user_id"], row["skill_id"]), []).append(row)
    return found


def outcome(answers: Sequence[Answer]) -> int | None:
    """1 for wheel-spinning, 0 for mastery, None where the log ends before either."""
    in_a_row = 0
    for place, answer in enumerate(answers):
        if place == SPINNING:
            return 1
        in_a_row = in_a_row + 1 if count(answer["correct"]) else 0
        if in_a_row == MASTERY:
            return 0
    return 1 if len(answers) >= SPINNING else None


def undecided(answers: Sequence[Answer], after: int) -> bool:
    """Whether nothing is decided after so many answers."""
    return len(answers) > after and outcome([*answers[:after]]) is None


def features(answers: Sequence[Answer]) -> list[float]:
    """The detector's features at the last of these answers, and what one log alone has."""
    window = StudentWindow()
    at_ms = WINDOW_MS
    slow = bottom = 0.0
    for answer in answers:
        taken_ms = min(max(count(answer["ms_first_response"]), SHORTEST_MS), LONGEST_MS)
        at_ms += taken_ms
        slow += np.log(taken_ms)
        bottom += count(answer["bottom_hint"])
        events = [("response_time", float(taken_ms))]
        if count(answer["correct"]):
            events.append(("correct", 1.0))
        else:
            hints = count(answer["hint_count"])
            events += [("error", 1.0)] * max(1 - hints, count(answer["attempt_count"]) - 1, 0)
            events += [("hint", 1.0)] * hints
        for kind, value in events:
            window.add(kind, [at_ms], array("q", [round(value * MICRO)]), 0)
    values = [0.0 if value is None else value for value in read(window, at_ms).values]
    right = sum(count(answer["correct"]) for answer in answers)
    return [
        *values,
        slow / len(answers),
        bottom,
        float(right),
        float(count(answers[-1]["correct"])),
    ]


def rule(answers: Sequence[Answer]) -> float:
    """The original's rule on the errors so far."""
    wrong = sum(not count(answer["correct"]) for answer in answers)
    return 0.95 if wrong >= 5 else 0.85 if wrong >= 3 else 0.0


def evaluate(folder: Path, after: int) -> Result:
    """One K."""
    inputs, labels, students, rules = [], [], [], []
    for (student, _), answers in sequences(folder).items():
        label = outcome(answers)
        if label is None or not undecided(answers, after):
            continue
        inputs.append(features(answers[:after]))
        labels.append(label)
        students.append(student)
        rules.append(rule(answers[:after]))
    x, y = np.array(inputs), np.array(labels, dtype=float)
    groups, claims = np.array(students), np.array(rules)
    scores = np.zeros(len(y))
    for train, test in GroupKFold(FOLDS).split(x, y, groups):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=RIDGE, max_iter=1_000))
        scores[test] = model.fit(x[train], y[train]).predict_proba(x[test])[:, 1]
    fires = claims > 0
    return Result(
        after,
        len(y),
        float(y.mean()),
        score(groups, y, scores),
        score(groups, y, claims),
        float(claims[fires].mean()) if fires.any() else float("nan"),
        float(y[fires].mean()) if fires.any() else float("nan"),
        y,
        scores,
    )
