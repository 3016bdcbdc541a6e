"""T4: what typing says of frustration in two data sets. Nothing; published as it is.

The detector was not fitted here and is not tuned here. Its confidence is the probability of another
thing (unproductive struggle), so it is moved to the base rate of the labels, taken from the other
people, before it is scored.
"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gaia_grpc.evaluation.data import FREIHAUT, SWELL, rows
from gaia_grpc.evaluation.scores import Score, score
from gaia_grpc.state.alert_text import is_pushed
from gaia_grpc.state.features import WINDOW_MS
from gaia_grpc.state.packing import MICRO
from gaia_grpc.state.pattern_rules import find, read_limits
from gaia_grpc.state.settings import Settings
from gaia_grpc.state.struggle import Detector
from gaia_grpc.state.struggle_machine import MEDIUM, Machine, read_ladder, step
from gaia_grpc.state.windows import StudentWindow

APP = "typing"
MINUTE_MS = 60_000
FRUSTRATED = 5.0
LEAST_TRIALS = 20
FIRST_MS = 1_000_000_000


class Result(NamedTuple):
    """One data set."""

    name: str
    people: int
    labels: np.ndarray
    confidences: np.ndarray
    model: Score
    base_brier: float
    corrections: Score
    """Of the share of corrections alone."""
    pushes_an_hour: float
    board_an_hour: float
    """Records of patterns that nobody is told of."""


class _Typist:
    """One person's window, patterns and episode machine."""

    def __init__(self) -> None:
        settings = Settings()
        self.window = StudentWindow()
        self._limits = read_limits(settings)
        self._ladder = read_ladder(settings)
        self._detector = Detector(settings)
        self._machine = Machine()
        self._hold_ms: dict[str, int] = {}
        self.pushes = self.records = 0
        self.confidence = 0.0

    def type(self, at_ms: int, keys: float, corrections: float) -> None:
        """What was typed up to a moment."""
        touched = []
        for kind, value in (("keypress", keys), ("backspace", corrections)):
            if value > 0:
                self.window.add(
                    kind, [at_ms], array("q", [round(value * MICRO)]), at_ms - 2 * WINDOW_MS
                )
                touched.append((kind, at_ms, at_ms))
        estimate = self._detector.evaluate(self.window, APP, at_ms)
        self._detector.learn(self.window, estimate, at_ms)
        self.confidence = estimate.confidence
        for finding in find(self.window, touched, self._limits):
            if at_ms >= self._hold_ms.get(finding.group, 0):
                self.records += 1
                self.pushes += is_pushed(finding.severity, estimate.confidence)
            self._hold_ms[finding.group] = finding.hold_until_ms
        before = self._machine.severity
        step(self._machine, at_ms, estimate, self._ladder)
        self.pushes += before < MEDIUM <= self._machine.severity


def swell(folder: Path) -> Result:
    """Minutes of office work; frustrated is 5 or more of 10 in the block's questionnaire."""
    typists: dict[str, _Typist] = {}
    found = []
    minutes = 0
    for row in rows(folder / SWELL):
        typist = typists.setdefault(row["PP"], _Typist())
        minutes += 1
        at_ms = FIRST_MS + minutes * MINUTE_MS
        keys, wrong = float(row["SnKeyStrokes"] or 0), float(row["SnErrorKeys"] or 0)
        typist.type(at_ms, keys, wrong)
        if row["Frustration"]:
            label = float(row["Frustration"]) >= FRUSTRATED
            found.append((row["PP"], label, typist.confidence, wrong / (keys + 20)))
    return _result("SWELL-KW, minutes", typists, found, minutes / 60)


def freihaut(folder: Path) -> Result:
    """Trials of typing; unpleasant and aroused (both beyond the person's own middle) is the
    nearest thing to frustration that was asked."""
    trials: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in rows(folder / FREIHAUT):
        if row["valence"] and row["arousal"]:
            trials.setdefault(row["ID"], []).append(
                (
                    float(row["valence"]),
                    float(row["arousal"]),
                    float(row["tot_ev"] or 0),
                    float(row["corrected_key_events"] or 0),
                )
            )
    typists: dict[str, _Typist] = {}
    found = []
    hours = 0.0
    for name, own in trials.items():
        if len(own) < LEAST_TRIALS:
            continue
        typist = typists.setdefault(name, _Typist())
        valence = float(np.median([each[0] for each in own]))
        arousal = float(np.median([each[1] for each in own]))
        for place, trial in enumerate(own):
            # A trial takes seconds, and the next one comes hours later.
            typist.type(FIRST_MS + place * 3_600_000, trial[2], trial[3])
            label = trial[0] < valence and trial[1] > arousal
            found.append((name, label, typist.confidence, trial[3] / (trial[2] + 20)))
            hours += 1 / 60
    return _result("Freihaut and Goeritz, trials", typists, found, hours)


def _result(
    name: str,
    typists: dict[str, _Typist],
    found: list[tuple[str, bool, float, float]],
    hours: float,
) -> Result:
    groups = np.array([each[0] for each in found])
    labels = np.array([float(each[1]) for each in found])
    confidences = np.array([each[2] for each in found])
    ratios = np.array([each[3] for each in found])
    moved = np.zeros(len(labels))
    for person in sorted(set(groups)):
        own = groups == person
        base, middle = labels[~own].mean(), confidences[~own].mean()
        odds = np.log(confidences[own] / (1 - confidences[own]))
        shift = np.log(base / (1 - base)) - np.log(middle / (1 - middle))
        moved[own] = 1 / (1 + np.exp(-(odds + shift)))
    base = labels.mean()
    return Result(
        name,
        len(typists),
        labels,
        moved,
        score(groups, labels, moved),
        float(base * (1 - base)),
        score(groups, labels, ratios),
        sum(each.pushes for each in typists.values()) / hours,
        sum(each.records for each in typists.values()) / hours,
    )
