"""How well a session fits a task (the guide's three scores)."""

from __future__ import annotations

GENERAL = "general"

EXACT = 1.0
PARTIAL = 0.5
NONE = 0.0


def affinity_score(specialty: str, affinity: str) -> float:
    """1.0 where both are equal, 0.5 where either is general, else 0.0."""
    if specialty == affinity:
        return EXACT
    return PARTIAL if GENERAL in (specialty, affinity) else NONE
