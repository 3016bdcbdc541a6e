"""How long a call may take: less than its caller waits, so that there is always an answer.

Three times end a call, in this order: the log's own timeout (it knows whether anything was
applied), the interceptor's (a servicer that hangs), the client's deadline (which we never see if
the first two do their work). `wait` of a long poll ends before all of them.
"""

from __future__ import annotations

from typing import Any

import grpc

from gaia_grpc.config import ConsensusConfig

Context = grpc.aio.ServicerContext[Any, Any]

ANSWER_MARGIN_S = 0.100
"""Kept back for the way of the answer to the client, and for a loop that is busy."""
LEAST_TIMEOUT_S = 0.001
LOG_TIME_GRACE_S = 0.5
"""How much later than ours log time may come to the end of a wait."""


def _margin_s(remaining_s: float) -> float:
    """A short deadline can't spare that much; a fifth of it then."""
    return min(ANSWER_MARGIN_S, remaining_s / 5)


def log_timeout_s(context: Context, consensus: ConsensusConfig) -> float:
    """Timeout in seconds for one call to the log; the default where the client set no deadline."""
    remaining_s = context.time_remaining()
    if remaining_s is None:
        return consensus.default_timeout_ms / 1000
    bounded_s = min(remaining_s - _margin_s(remaining_s), consensus.max_timeout_ms / 1000)
    return max(bounded_s, LEAST_TIMEOUT_S)


def handler_timeout_s(context: Context, consensus: ConsensusConfig) -> float:
    """Timeout in seconds for a whole unary handler: a long poll and a call to the log."""
    longest_s = (consensus.max_timeout_ms + consensus.default_timeout_ms) / 1000
    remaining_s = context.time_remaining()
    if remaining_s is None:
        return longest_s
    return max(min(remaining_s - _margin_s(remaining_s) / 2, longest_s), LEAST_TIMEOUT_S)


def wait_timeout_s(context: Context, consensus: ConsensusConfig, wait_ms: int) -> float:
    """How long a long poll may wait in seconds.

    A wait ends by log time, so ours is a little longer; but never so long that the answer is late.
    """
    wait_s = min(wait_ms, consensus.max_timeout_ms) / 1000 + LOG_TIME_GRACE_S
    remaining_s = context.time_remaining()
    if remaining_s is None:
        return wait_s
    return max(min(wait_s, remaining_s - 2 * _margin_s(remaining_s)), 0.0)
