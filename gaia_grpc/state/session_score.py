"""How well a session fits an affinity: the parts of `SessionScore` and the order that they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gaia_grpc.state.affinity import NONE, affinity_score
from gaia_grpc.state.session_record import DEGRADED, FAILED, HEALTHY, Session

HEALTH_SCORES: Mapping[int, float] = {HEALTHY: 1.0, DEGRADED: 0.5, FAILED: 0.0}
CAPACITY_DIVISOR = 4
"""A whole free session adds a quarter: less than the half between two affinity scores."""


class Scored(NamedTuple):
    """The parts, as the contract names them."""

    affinity_score: float
    capacity_score: float
    health_score: float
    free_capacity: int
    eligible: bool
    score: float

    def order(self, number: int) -> tuple[float, float, float, int, int]:
        """Sorts the better session first; `number` is the session's."""
        return (
            -self.score,
            -self.affinity_score,
            -self.health_score,
            -self.free_capacity,
            number,
        )


def scored(session: Session, affinity: str) -> Scored:
    """The session's score for tasks of this affinity."""
    fit = affinity_score(session.specialty, affinity)
    free = session.free_capacity
    share = free / session.max_concurrent_tasks
    eligible = session.ready and fit > NONE
    return Scored(
        affinity_score=fit,
        capacity_score=share,
        health_score=HEALTH_SCORES[session.health],
        free_capacity=free,
        eligible=eligible,
        score=fit + share / CAPACITY_DIVISOR if eligible else 0.0,
    )
