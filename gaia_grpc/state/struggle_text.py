"""What an alert says from feature level 3 on: figures, evidence, and the same in plain words.

The words name what happened, what is usual for this student, and what became of students with such
a confidence; never a feeling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gaia.alert.v1 import alert_pb2

from gaia_grpc.state.alert_text import number, percent, span
from gaia_grpc.state.features import FEATURES, OTHER, TYPING, WINDOW_MS, Reading
from gaia_grpc.state.packing import MICRO
from gaia_grpc.state.pattern_rules import (
    CORRECTIONS_GROUP,
    HESITATION_GROUP,
    PERFORMANCE_GROUP,
)
from gaia_grpc.state.patterns import ERRORS_GROUP, Finding
from gaia_grpc.state.struggle import Estimate, Part

SHOWN_PARTS: Final = 3
SHOWN_FROM: Final = 0.2
"""Contribution to the log-odds from which a part is worth a word."""
USUAL_FROM: Final = 5
"""Past windows from which on a student's level is called usual."""
RELIABLE_FROM: Final = 30
"""Cases from which on a share of them is told."""
LONG_MS: Final = 60_000
_GROUP_OF: Final = {feature.name: feature.group for feature in FEATURES}
_PLACE_OF: Final = {feature.name: at for at, feature in enumerate(FEATURES)}
_FAILURES: Final = ("error_rate", "error_rate_1min", "wrong_of_last_10")


def describe_alert(
    alert: alert_pb2.Alert,
    findings: Sequence[Finding],
    found: Estimate,
    *,
    pattern_window_ms: int,
) -> None:
    """Writes confidence, evidence and explanation; pattern, severity and push are the caller's.

    `findings` are the patterns that stand, most important first; none where the model is alone.
    """
    alert.confidence = found.confidence
    alert.base_rate = found.model.base_rate
    alert.coverage = found.coverage
    alert.model_version = found.model.version
    alert.window_s = WINDOW_MS // 1_000
    alert.suggested_action = suggested_action(alert.severity, findings, found)
    del alert.evidence[:]
    length = span(pattern_window_ms).replace(" ", "")
    for finding in findings:
        name, amount = _counted(finding)
        alert.evidence.add(feature=f"{name}_{length}", value=amount)
    for part in found.parts:
        alert.evidence.add(
            feature=part.feature,
            value=part.value,
            cohort=part.cohort,
            own=part.own,
            contribution=part.contribution,
        )
    alert.explanation = explain(findings, found, pattern_window_ms)


def suggested_action(severity: int, findings: Sequence[Finding], found: Estimate) -> str:
    """What a teacher might do."""
    dominant = max(_present(found), key=lambda part: part.contribution, default=None)
    if (
        not findings
        and dominant is not None
        and dominant.contribution > 0
        and _GROUP_OF[dominant.feature] == OTHER
    ):
        return "technical_help"
    return "guidance" if severity >= alert_pb2.SEVERITY_HIGH else "encouragement"


def _present(found: Estimate) -> list[Part]:
    """The parts whose channels brought anything."""
    return [part for part in found.parts if found.reading.coverage >> _PLACE_OF[part.feature] & 1]


def _counted(finding: Finding) -> tuple[str, float]:
    if finding.group == ERRORS_GROUP:
        return "errors", finding.errors_micro / MICRO
    if finding.group == PERFORMANCE_GROUP:
        return "accuracy_fall", finding.amount_micro / MICRO
    name = "corrections" if finding.group == CORRECTIONS_GROUP else "pause_seconds"
    return name, finding.amount_micro / MICRO


def explain(findings: Sequence[Finding], found: Estimate, pattern_window_ms: int) -> str:
    """For example: 5 errors in 60 s; 9 of 12 answers wrong in 5 min (usual for this student: 3 of
    12); no correct answer for 2 min 40 s; 4 hints. Estimated chance ..."""
    words = [_finding_text(finding, pattern_window_ms) for finding in findings]
    ranked = sorted(_present(found), key=lambda part: -part.contribution)
    shown = [part for part in ranked if part.contribution > SHOWN_FROM][:SHOWN_PARTS]
    if found.reading.wrong > 0 and not any(part.feature in _FAILURES for part in shown):
        shown = [part for part in found.parts if part.feature == "error_rate"] + shown
    said: set[str] = set()
    for part in shown:
        kind = "failures" if part.feature in _FAILURES else part.feature
        text = "" if kind in said else _part_text(kind, part, found)
        said.add(kind)
        if text:
            words.append(text)
    if not words:
        words = ["little is known of these 5 min"]
    sentences = ["; ".join(words), _chance(found)]
    return ". ".join(sentences)


def _chance(found: Estimate) -> str:
    chance = (
        "Estimated chance of unproductive struggle in the next 5 min: "
        f"{percent(found.confidence)} (usual: {percent(found.model.base_rate)})"
    )
    seen = [each for each in found.model.reliability if each[0] <= found.confidence]
    if seen and seen[-1][2] >= RELIABLE_FROM:
        tenths = round(seen[-1][1] * 10)
        often = "Fewer than 1" if tenths < 1 else f"About {tenths}"
        chance += f". {often} in 10 students like this stayed stuck"
    return chance


def _finding_text(finding: Finding, window_ms: int) -> str:
    amount = finding.amount_micro / MICRO
    if finding.group == CORRECTIONS_GROUP:
        return f"{number(amount)} corrections in {span(window_ms)}"
    if finding.group == HESITATION_GROUP:
        return f"a pause of {number(amount)} s"
    if finding.group == PERFORMANCE_GROUP:
        return f"accuracy fell by {round(amount * 100)} points in {span(window_ms)}"
    return f"{number(finding.errors_micro / MICRO)} errors in {span(window_ms)}"


def _part_text(kind: str, part: Part, found: Estimate) -> str:
    reading = found.reading
    if kind == "failures":
        return _failures(reading, found)
    if kind in ("stuck", "low_output"):
        return _since_success(reading)
    if kind == "error_streak":
        return "" if reading.streak < 2 else f"{number(reading.streak)} errors in a row"
    if kind == "hints":
        return f"{number(reading.hints)} hints" if reading.hints > 0 else ""
    if kind == "idle":
        return f"{round(part.value * WINDOW_MS / 1_000)} s without activity"
    if kind == "pace_change":
        return "much faster or slower than before"
    if _GROUP_OF[part.feature] == TYPING:
        return "many corrections"
    return "window left or keys repeated often"


def _failures(reading: Reading, found: Estimate) -> str:
    if reading.wrong <= 0:
        return ""
    text = f"{number(reading.wrong)} of {number(reading.decisions)} answers wrong in 5 min"
    own = [part.own for part in found.parts if part.feature == "error_rate"]
    if own and found.windows >= USUAL_FROM:
        # The inverse of the feature's smoothing.
        usual = min(max(own[0] * (reading.decisions + 4) - 1, 0.0), reading.decisions)
        text += f" (usual for this student: {round(usual)} of {number(reading.decisions)})"
    return text


def _since_success(reading: Reading) -> str:
    if reading.since_success_ms < LONG_MS or reading.decisions <= 0:
        return ""
    seconds = reading.since_success_ms // 1_000
    return f"no correct answer for {seconds // 60} min {seconds % 60} s"
