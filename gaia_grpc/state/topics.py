"""Names of the topics that `apply` touches, so that watchers wake only for what they watch."""

from __future__ import annotations

SESSIONS = "sessions"
TASKS = "tasks"
ALERTS = "alerts"
"""Every alert event."""
SETTINGS = "settings"
CLASSROOMS = "classrooms"
"""Rosters: who teaches whom."""


def classroom_alerts(classroom_id: str) -> str:
    """Alert events of one classroom."""
    return f"alerts/{classroom_id}"


def teacher_alerts(teacher_id: str) -> str:
    """Alert events of the classrooms of one teacher, by the rosters at the time of the event."""
    return f"teacher-alerts/{teacher_id}"


def claim_wait(waiter_id: int) -> str:
    """A waiting claim was granted or ran out."""
    return f"wait/{waiter_id}"


def lock_wait(waiter_id: int) -> str:
    """A wait for a lock was granted, ran out, or passed to another caller."""
    return f"lock-wait/{waiter_id}"


def classroom_metrics(timeline_id: str, classroom_id: str) -> str:
    """Windows of one classroom changed."""
    return f"metrics/{timeline_id}/{classroom_id}"
