"""What an alert says: its figures, its evidence and the same in plain words."""

from __future__ import annotations

from typing import Final

from gaia.alert.v1 import alert_pb2

from gaia_grpc.state.detector import MODEL_VERSION, Estimate
from gaia_grpc.state.packing import MICRO
from gaia_grpc.state.patterns import Finding

MEDIUM_PUSH_CONFIDENCE: Final = 0.30

_ACTIONS: Final = {
    alert_pb2.SEVERITY_MEDIUM: "encouragement",
    alert_pb2.SEVERITY_HIGH: "guidance",
    alert_pb2.SEVERITY_CRITICAL: "guidance",
}


def is_pushed(severity: int, confidence: float) -> bool:
    """HIGH and CRITICAL are pushed at once, MEDIUM where the model stands behind it."""
    if severity >= alert_pb2.SEVERITY_HIGH:
        return True
    return severity == alert_pb2.SEVERITY_MEDIUM and confidence >= MEDIUM_PUSH_CONFIDENCE


def describe(
    alert: alert_pb2.Alert,
    finding: Finding,
    found: Estimate,
    *,
    errors_window_ms: int,
    window_ms: int,
) -> None:
    """Writes pattern, severity, confidence and what stands behind them into the alert."""
    alert.pattern = finding.pattern
    alert.severity = alert_pb2.Severity.ValueType(finding.severity)
    alert.confidence = found.confidence
    alert.base_rate = found.base_rate
    alert.coverage = found.coverage
    alert.model_version = MODEL_VERSION
    alert.window_s = window_ms // 1_000
    alert.suggested_action = _ACTIONS.get(alert.severity, "encouragement")
    alert.pushed = alert.pushed or is_pushed(finding.severity, found.confidence)
    del alert.evidence[:]
    alert.evidence.add(
        feature=f"errors_{span(errors_window_ms).replace(' ', '')}",
        value=finding.errors_micro / MICRO,
    )
    for part in found.contributions:
        # With no long-run level yet, a student's usual value is the cohort's.
        alert.evidence.add(
            feature=part.feature.name,
            value=part.value,
            cohort=part.feature.mean,
            own=part.feature.mean,
            contribution=part.contribution,
        )
    alert.explanation = explain(finding, found, errors_window_ms, window_ms)


def explain(finding: Finding, found: Estimate, errors_window_ms: int, window_ms: int) -> str:
    """For example: 5 errors in 60 s; 5 of 6 answers wrong in 5 min; 4 errors in a row; ..."""
    errors = finding.errors_micro / MICRO
    parts = [f"{number(errors)} errors in {span(errors_window_ms)}"]
    if found.decisions > found.wrong:
        wrong, decisions = number(found.wrong), number(found.decisions)
        parts.append(f"{wrong} of {decisions} answers wrong in {span(window_ms)}")
    else:
        parts.append(f"no correct answer in {span(window_ms)}")
    if found.streak >= 2:
        more = " or more" if found.streak >= 8 else ""
        parts.append(f"{number(found.streak)}{more} errors in a row")
    parts.append(
        f"estimated chance of unproductive struggle in the next 5 min {percent(found.confidence)}"
        f" (usual: {percent(found.base_rate)})"
    )
    return "; ".join(parts)


def number(value: float) -> str:
    """Whole where it is whole, else with two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{round(share * 100)} %"


def span(length_ms: int) -> str:
    """A length of time in minutes where it is two or more whole ones, else in seconds."""
    if length_ms % 60_000 == 0 and length_ms >= 120_000:
        return f"{length_ms // 60_000} min"
    return f"{number(length_ms / 1_000)} s"
