"""The detector: a calibrated probability of unproductive struggle in the next 5 minutes.

It is no reading of an emotion. The model is a logistic one on the features (features.py), each as
it is now and as this student's own long-run level (level.py), on the cohort's scale, capped to
[-2, 4], with weights of 0 or more: so more evidence never lowers a confidence. It is drawn to the
base rate by how little is known: c = base + (p - base) * m / (m + 6), with m answers and hints in
the window (below the base rate only right answers count, or an error would speak against trouble).

Where a student does nothing, standing still says nothing: `stuck` and `low_output` cannot raise a
confidence then. A pause, a blurred window and the like are no reassurance where they are missing:
they count from the cohort's mean up. Level alone raises nothing: without an error or hint in the
window the confidence is at most the base rate.

Only + - * / and comparisons on floats, with tables for exp and log: every machine gets the same
bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from gaia_grpc.state.detector import logistic
from gaia_grpc.state.features import FAILURE, FEATURES, Reading, read
from gaia_grpc.state.level import LEARN_EVERY_MS, NOT_YET, Level
from gaia_grpc.state.models import MODELS
from gaia_grpc.state.models.form import Model
from gaia_grpc.state.packing import MICRO
from gaia_grpc.state.settings import Settings
from gaia_grpc.state.windows import StudentWindow

MATH_PREFIX: Final = "math"
SHRINK: Final = 6.0
Z_LOW, Z_HIGH = -2.0, 4.0
SPEAKS: Final = 0.5
"""A group of features speaks where one of them is so many deviations above the cohort."""
ONLY_ACTIVE: Final = frozenset({"stuck", "low_output"})
ONLY_RAISING: Final = frozenset({"idle", "corrections", "blur", "rapid_repeat", "pace_change"})


@dataclass(frozen=True, slots=True)
class Part:
    """What one feature added to the log-odds."""

    feature: str
    value: float
    cohort: float
    own: float
    """The student's usual value."""
    contribution: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the model says of one window."""

    model: Model
    reading: Reading
    confidence: float
    """Calibrated, in millionths."""
    coverage: float
    """Share of the weights whose features had data."""
    ready: bool
    """Whether the guards hold: enough answers, long enough at work, and an error or hint now."""
    groups: int
    """Groups of features that speak."""
    failing: bool
    """Whether failure is one of them."""
    streak: float
    windows: int
    """Past windows in the student's own level."""
    owns: tuple[float, ...]
    """The student's own level of each feature that the model weighs."""
    contributions: tuple[float, ...]
    """What each of them added to the log-odds."""

    @property
    def parts(self) -> list[Part]:
        """The features that the model weighs, in their order."""
        weights = self.model.weights
        places = [at for at, each in enumerate(weights) if each.now > 0 or each.level > 0]
        found = []
        for at, own, contribution in zip(places, self.owns, self.contributions, strict=True):
            value, mean = self.reading.values[at], weights[at].mean
            shown = mean if value is None else value
            found.append(Part(weights[at].feature, shown, mean, own, contribution))
        return found


class Term(NamedTuple):
    """One feature of a model, as an evaluation needs it."""

    at: int
    mean: float
    deviation: float
    now: float
    level: float
    raising: bool
    only_active: bool
    group: int
    """A bit."""


_GROUPS: Final = tuple(dict.fromkeys(feature.group for feature in FEATURES))
_FAILURE_BIT: Final = 1 << _GROUPS.index(FAILURE)


def _terms(model: Model) -> tuple[Term, ...]:
    """Those with a weight."""
    return tuple(
        Term(
            at=at,
            mean=weight.mean,
            deviation=weight.deviation,
            now=weight.now,
            level=weight.level,
            raising=name in ONLY_RAISING,
            only_active=name in ONLY_ACTIVE,
            group=1 << _GROUPS.index(group),
        )
        for at, (weight, (name, group)) in enumerate(zip(model.weights, FEATURES, strict=True))
        if weight.now > 0 or weight.level > 0
    )


class Detector:
    """The models in use and their limits, as the settings say."""

    def __init__(self, settings: Settings, models: Mapping[str, Model] = MODELS) -> None:
        """`models`: by version; others than the shipped ones where a model is being judged."""
        self._math = models[settings.text("detector.model_math")]
        self._default = models[settings.text("detector.model_default")]
        self._terms = {each.version: _terms(each) for each in (self._math, self._default)}
        self._every_ms = settings.milliseconds("detector.evaluate_every")
        self._min_decisions = settings.integer("detector.min_decisions")
        self._min_activity_ms = settings.milliseconds("detector.min_activity")
        self._typing_cap = settings.number("detector.typing_cap")

    def model_of(self, app_name: str) -> Model:
        """The model of an app."""
        return self._math if app_name.lower().startswith(MATH_PREFIX) else self._default

    def due(self, window: StudentWindow, clock_ms: int) -> bool:
        """Whether a metric may be followed by an evaluation."""
        level = window.level
        return (
            level is None
            or level.evaluated_ms == NOT_YET
            or clock_ms - level.evaluated_ms >= self._every_ms
        )

    def learn(self, window: StudentWindow, estimate: Estimate, clock_ms: int) -> None:
        """Remembers that it was evaluated, and the window where it is time for that. Only while
        the window may be changed: with a metric."""
        level = window.level
        if level is None:
            level = window.level = Level()
        level.evaluated_ms = clock_ms
        reading = estimate.reading
        known = reading.decisions + reading.hints >= self._min_decisions
        if level.learned_ms != NOT_YET and clock_ms - level.learned_ms < LEARN_EVERY_MS:
            return
        if reading.active and known and reading.activity_ms >= self._min_activity_ms:
            weights = estimate.model.weights
            level.add(
                [
                    weight.mean if value is None else value
                    for weight, value in zip(weights, reading.values, strict=True)
                ],
                clock_ms,
            )

    def evaluate(self, window: StudentWindow, app_name: str, end_ms: int) -> Estimate:
        """The model on the 5 minutes that end at `end_ms`; changes nothing that is state."""
        model = self.model_of(app_name)
        terms = self._terms[model.version]
        reading = read(window, end_ms)
        level = window.level
        odds = model.intercept
        owns: list[float] = []
        contributions: list[float] = []
        groups = 0
        available = total = 0.0
        for at, mean, deviation, now, weight, raising, only_active, group in terms:
            own = level.mean(at, mean) if level is not None else mean
            contribution = weight * min(max((own - mean) / deviation, Z_LOW), Z_HIGH)
            value = reading.values[at]
            present = reading.coverage >> at & 1
            if value is not None and now > 0:
                z = min(max((value - mean) / deviation, Z_LOW), Z_HIGH)
                if (z < 0 and raising) or (z > 0 and only_active and not reading.active):
                    z = 0.0
                contribution += now * z
                if z >= SPEAKS and present:
                    groups |= group
            total += now
            if present:
                available += now
            odds += contribution
            owns.append(own)
            contributions.append(contribution)
        if reading.wrong <= 0:
            groups &= ~_FAILURE_BIT
        known = reading.decisions + reading.hints
        troubled = reading.wrong > 0 or reading.hints > 0
        return Estimate(
            model=model,
            reading=reading,
            confidence=self._confidence(model, reading, logistic(odds), troubled=troubled),
            coverage=available / total if total else 0.0,
            ready=(
                known >= self._min_decisions
                and reading.activity_ms >= self._min_activity_ms
                and troubled
            ),
            groups=groups.bit_count(),
            failing=groups & _FAILURE_BIT > 0,
            streak=reading.streak,
            windows=level.count if level is not None else 0,
            owns=tuple(owns),
            contributions=tuple(contributions),
        )

    def _confidence(self, model: Model, reading: Reading, p: float, *, troubled: bool) -> float:
        base = model.base_rate
        known = reading.decisions + reading.hints
        if p < base:
            known = reading.decisions - reading.wrong
        shrunk = base + (p - base) * known / (known + SHRINK)
        confidence = calibrate(model, shrunk)
        if not troubled:
            confidence = min(confidence, base)
        if not known and not reading.wrong:
            confidence = min(confidence, self._typing_cap)
        return round(confidence * MICRO) / MICRO


def calibrate(model: Model, value: float) -> float:
    """The model's calibration, linear between its places."""
    low = model.calibration[0]
    for high in model.calibration[1:]:
        if value <= high[0]:
            return low[1] + (high[1] - low[1]) * (value - low[0]) / (high[0] - low[0])
        low = high
    return low[1]
