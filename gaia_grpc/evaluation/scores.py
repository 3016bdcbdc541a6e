"""Scores, and their intervals by drawing students again."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

DRAWS = 500
BINS = 10


class Interval(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Score(NamedTuple):
    """How a predictor does."""

    auc: Interval
    within_auc: float
    """Mean over the students that have both outcomes."""
    brier: Interval
    ece: float


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve; nan where one outcome alone is there."""
    if labels.min() == labels.max():
        return float("nan")
    return float(roc_auc_score(labels, scores))


def brier(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean squared distance to the outcome."""
    return float(((scores - labels) ** 2).mean())


def calibration_error(labels: np.ndarray, scores: np.ndarray) -> float:
    """Expected calibration error over 10 bins of equal size."""
    total = 0.0
    for part in np.array_split(np.argsort(scores, kind="stable"), BINS):
        if len(part):
            total += abs(float(scores[part].mean() - labels[part].mean())) * len(part)
    return total / len(labels)


def bootstrap(
    groups: np.ndarray, figure: Callable[[np.ndarray], float], draws: int = DRAWS
) -> Interval:
    """`figure` of the rows of all groups, and of groups drawn with replacement."""
    random = np.random.default_rng(20_261_122)
    rows_of = {name: np.flatnonzero(groups == name) for name in sorted(set(groups))}
    names = list(rows_of)
    found = []
    for _ in range(draws):
        drawn = random.integers(0, len(names), len(names))
        value = figure(np.concatenate([rows_of[names[at]] for at in drawn]))
        if not np.isnan(value):
            found.append(value)
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(figure(np.arange(len(groups))), float(low), float(high))


def score(groups: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> Score:
    """All of it."""
    within = [
        auc(labels[groups == name], scores[groups == name])
        for name in sorted(set(groups))
        if labels[groups == name].min() != labels[groups == name].max()
    ]
    return Score(
        bootstrap(groups, lambda rows: auc(labels[rows], scores[rows])),
        float(np.mean(within)) if within else float("nan"),
        bootstrap(groups, lambda rows: brier(labels[rows], scores[rows])),
        calibration_error(labels, scores),
    )


def difference(
    groups: np.ndarray, labels: np.ndarray, first: np.ndarray, second: np.ndarray
) -> Interval:
    """AUC of the first minus that of the second."""
    return bootstrap(
        groups, lambda rows: auc(labels[rows], first[rows]) - auc(labels[rows], second[rows])
    )
