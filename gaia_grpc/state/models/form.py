"""What a model consists of. Models are data: made by `make fit`, never changed once released."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Weight:
    """One feature (features.py) in a model."""

    feature: str
    mean: float
    """In the cohort."""
    deviation: float
    """Standard deviation in the cohort; more than 0."""
    now: float
    """Added to the log-odds for each deviation above the mean in the window; 0 or more."""
    level: float
    """The same for the student's own long-run level; 0 or more."""


@dataclass(frozen=True, slots=True)
class Model:
    """A logistic model with weights of 0 or more, and its calibration."""

    version: str
    since_level: int
    """Feature level from which on every peer knows it."""
    base_rate: float
    """Confidence of a student of whom nothing is known."""
    intercept: float
    weights: tuple[Weight, ...]
    """In the order of `features.FEATURES`."""
    calibration: tuple[tuple[float, float], ...]
    """(uncalibrated, calibrated), both ascending from 0 to 1; linear between them."""
    reliability: tuple[tuple[float, float, int], ...]
    """(lowest confidence, share that struggled, how many times), on students that the model was not
    fitted to; empty where it was fitted to nobody."""
