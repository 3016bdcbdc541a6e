"""Fits a model: ridge towards 0, weights of 0 or more, and a calibration of one parameter.

The calibration stretches the distance to the base rate in log-odds. It is fitted to predictions for
students that the weights were not fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from gaia_grpc.evaluation.points import Points
from gaia_grpc.state.features import FEATURES
from gaia_grpc.state.level import PRIOR_WINDOWS
from gaia_grpc.state.models.form import Model, Weight
from gaia_grpc.state.struggle import ONLY_ACTIVE, ONLY_RAISING, SHRINK, Z_HIGH, Z_LOW

RIDGE = 30.0
LEAST_DEVIATION = 1e-6
PLACES = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
NAMES = tuple(feature.name for feature in FEATURES)


def cohort(points: Points, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and deviations of the features; (0, 1) of those that never varied."""
    means = np.zeros(len(NAMES))
    deviations = np.ones(len(NAMES))
    for at in range(len(NAMES)):
        known = points.values[rows, at]
        known = known[~np.isnan(known)]
        if len(known) and known.std() > LEAST_DEVIATION:
            means[at], deviations[at] = known.mean(), known.std()
    return means, deviations


def design(
    points: Points, rows: np.ndarray, means: np.ndarray, deviations: np.ndarray
) -> np.ndarray:
    """What the weights are multiplied with: the rules of struggle.py for whole columns."""
    now = np.clip((points.values[rows] - means) / deviations, Z_LOW, Z_HIGH)
    now = np.nan_to_num(now, nan=0.0)
    for at, name in enumerate(NAMES):
        if name in ONLY_RAISING:
            now[:, at] = np.maximum(now[:, at], 0.0)
        if name in ONLY_ACTIVE:
            away = ~points.active[rows]
            now[away, at] = np.minimum(now[away, at], 0.0)
    counts = points.level_counts[rows][:, None]
    own = (points.level_sums[rows] + means * PRIOR_WINDOWS) / (counts + PRIOR_WINDOWS)
    level = np.clip((own - means) / deviations, Z_LOW, Z_HIGH)
    return np.hstack([now, level])


def fit_weights(inputs: np.ndarray, labels: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """Intercept and weights of 0 or more."""
    size = inputs.shape[1]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        odds = parameters[0] + inputs @ parameters[1:]
        error = 1.0 / (1.0 + np.exp(-odds)) - labels
        value = np.logaddexp(0.0, odds).sum() - labels @ odds
        value += ridge / 2 * (parameters[1:] ** 2).sum()
        return value, np.r_[error.sum(), inputs.T @ error + ridge * parameters[1:]]

    bounds = [(None, None), *([(0.0, None)] * size)]
    found = minimize(loss, np.zeros(size + 1), jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(found.x)


def shrunk(points: Points, rows: np.ndarray, odds: np.ndarray, base_rate: float) -> np.ndarray:
    """Drawn to the base rate by how little is known: before the calibration."""
    p = 1.0 / (1.0 + np.exp(-odds))
    known = np.where(p < base_rate, points.right[rows], points.known[rows])
    return base_rate + (p - base_rate) * known / (known + SHRINK)


def stretch(values: np.ndarray, base_rate: float, scale: float) -> np.ndarray:
    """Multiplies the distance to the base rate in log-odds."""
    middle = math.log(base_rate / (1 - base_rate))
    values = np.clip(values, 1e-6, 1 - 1e-6)
    odds = middle + scale * (np.log(values / (1 - values)) - middle)
    return 1.0 / (1.0 + np.exp(-odds))


def fit_scale(values: np.ndarray, labels: np.ndarray, base_rate: float) -> float:
    """The stretch that fits best."""

    def loss(scale: float) -> float:
        p = np.clip(stretch(values, base_rate, scale), 1e-9, 1 - 1e-9)
        return float(-(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean())

    return float(minimize_scalar(loss, bounds=(0.2, 3.0), method="bounded").x)


def left_out(points: Points, rows: np.ndarray, base_rate: float) -> np.ndarray:
    """Predictions for each student by a fit to the others of `rows`, before the calibration."""
    found = np.zeros(len(rows))
    for student in sorted(set(points.students[rows])):
        inside = points.students[rows] == student
        others, own = rows[~inside], rows[inside]
        means, deviations = cohort(points, others)
        weights = fit_weights(design(points, others, means, deviations), points.labels[others])
        odds = weights[0] + design(points, own, means, deviations) @ weights[1:]
        found[inside] = shrunk(points, own, odds, base_rate)
    return found


def fit_model(
    points: Points,
    rows: np.ndarray,
    *,
    version: str,
    since_level: int,
    base_rate: float,
    bins: Sequence[float] = (),
) -> Model:
    """A model of some rows, calibrated by predictions for students that were left out."""
    means, deviations = cohort(points, rows)
    weights = fit_weights(design(points, rows, means, deviations), points.labels[rows])
    held_out = left_out(points, rows, base_rate)
    scale = fit_scale(held_out, points.labels[rows], base_rate)
    size = len(NAMES)
    inner = [place for place in PLACES if 0 < place < 1]
    values = stretch(np.array(inner), base_rate, scale)
    places = [(0.0, 0.0), *zip(inner, (round(float(v), 6) for v in values), strict=True)]
    places += [(base_rate, base_rate)] if base_rate not in inner else []
    confidences = stretch(held_out, base_rate, scale)
    return Model(
        version=version,
        since_level=since_level,
        base_rate=base_rate,
        intercept=round(float(weights[0]), 6),
        weights=tuple(
            Weight(
                name,
                round(float(means[at]), 6),
                round(float(deviations[at]), 6),
                round(float(weights[1 + at]), 4),
                round(float(weights[1 + size + at]), 4),
            )
            for at, name in enumerate(NAMES)
        ),
        calibration=(*sorted(places), (1.0, 1.0)),
        reliability=reliability(confidences, points.labels[rows], bins),
    )


def reliability(
    confidences: np.ndarray, labels: np.ndarray, bins: Sequence[float]
) -> tuple[tuple[float, float, int], ...]:
    """(lowest confidence, share of positives, how many) of each bin that holds any."""
    found = []
    for low, high in zip(bins, [*bins[1:], 1.01][: len(bins)], strict=True):
        inside = (confidences >= low) & (confidences < high)
        if inside.any():
            share = float(labels[inside].mean())
            found.append((low, round(share, 4), int(inside.sum())))
    return tuple(found)
