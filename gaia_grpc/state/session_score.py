"""How well a session fits an affinity: the parts of `SessionScore` and the order that they make."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
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


def best(sessions: Iterable[Session], affinity: str, most: int) -> list[Session]:
    """The sessions that fit best, in the order that the contract states.

    One pass without a call for each session: ten thousand of them must not keep the loop.
    """
    fits: dict[str, float] = {}
    ranked = []
    for session in sessions:
        specialty = session.specialty
        fit = fits.get(specialty)
        if fit is None:
            fit = fits[specialty] = affinity_score(specialty, affinity)
        capacity = session.max_concurrent_tasks
        free = capacity - len(session.claims)
        health = session.health
        score = 0.0
        if health == HEALTHY and free > 0 and fit > NONE:
            score = fit + free / capacity / CAPACITY_DIVISOR
        number = session.number
        ranked.append((-score, -fit, -HEALTH_SCORES[health], -free, number, session))
    return [entry[-1] for entry in heapq.nsmallest(most, ranked)]


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
