"""What a failed attempt means for the next one: pure rules, no I/O.

Repeating is safe for every call of the contracts: mutations carry a request_id that stays the same
over all attempts, and the others are idempotent by token, key or sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from gaia_grpc.client.rpc_errors import UNREACHABLE
from gaia_grpc.errors import (
    DomainError,
    DrainingError,
    GaiaError,
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    ResourceExhaustedError,
    UnavailableError,
)

MAX_TIMEOUT_S = 300.0
"""The cluster keeps outcomes for 15 minutes; far before that nobody repeats a call any more."""
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_ATTEMPT_TIMEOUT_S = 5.0

BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 1.0
MAX_SERVER_FAULTS = 3
"""A peer that fails inside (INTERNAL) most likely fails again: few attempts, then an error."""
MAX_REDIRECTS = 4
"""Redirects in a row without a pause; beyond it, two peers may be naming each other."""


class Next(Enum):
    """What to do after a failed attempt."""

    RAISE = auto()
    SAME_PEER = auto()
    OTHER_PEER = auto()
    SILENT_PEER = auto()
    """Another peer, and this one is passed over for a while."""
    REDIRECT = auto()


@dataclass(slots=True)
class Attempts:
    """What is known about the attempts of one call so far."""

    draw: Callable[[], float]
    """Random number in [0, 1): spreads callers that failed together."""
    failed: int = 0
    redirects: int = 0
    server_faults: int = 0
    outcome_unknown: bool = False
    """Some attempt may have been applied."""
    last: GaiaError | None = field(default=None)

    def after(self, failure: GaiaError) -> Next:
        """Takes note of a failed attempt and says what to do."""
        self.failed += 1
        self.last = failure
        match failure:
            case NotLeaderError():
                self.redirects += 1
                return Next.REDIRECT
            case ResourceExhaustedError():
                return Next.RAISE if failure.retry_after_ms is None else Next.SAME_PEER
            case OverloadedError():
                return Next.SAME_PEER
            case DomainError():
                return Next.RAISE
            case DrainingError():
                return Next.SILENT_PEER
            case UnavailableError():
                lost = failure.instance_reason == UNREACHABLE
                return Next.SILENT_PEER if lost else Next.OTHER_PEER
            case OutcomeUnknownError():
                return self._after_unknown(failure)
            case _:
                return Next.RAISE

    def _after_unknown(self, failure: OutcomeUnknownError) -> Next:
        self.outcome_unknown = True
        match failure.instance_reason:
            case "INTERNAL" | "UNKNOWN" | "DATA_LOSS":
                self.server_faults += 1
                return Next.RAISE if self.server_faults >= MAX_SERVER_FAULTS else Next.SAME_PEER
            case OutcomeUnknownError.reason if failure.metadata or failure.retry_after_ms:
                return Next.SAME_PEER
            case _:
                return Next.SILENT_PEER

    def pause_s(self, step: Next, *, fresh_peer: bool) -> float:
        """How long to wait before the next attempt.

        A peer that was not tried yet is tried at once, since a killed leader should cost one failed
        attempt and not a back-off.
        """
        retry_after_ms = self.last.retry_after_ms if self.last is not None else None
        if step is Next.REDIRECT and self.redirects <= MAX_REDIRECTS:
            return 0.0
        if step is Next.SILENT_PEER and fresh_peer:
            return 0.0
        pause: float = min(BACKOFF_FIRST_S * 2.0 ** min(self.failed - 1, 10), BACKOFF_MAX_S)
        pause *= 0.5 + self.draw()
        return max(pause, (retry_after_ms or 0) / 1000 * (1 + 0.25 * self.draw()))

    def final_error(self, *, read: bool, timeout_s: float, request_id: str) -> GaiaError:
        """The error of a call whose time is up."""
        last = self.last or UnavailableError("no attempt was made")
        text = f"gave up after {timeout_s:g} s and {self.failed} attempts; last: {last.message}"
        if self.outcome_unknown and not read:
            metadata = {"request_id": request_id} if request_id else {}
            return OutcomeUnknownError(text, metadata=metadata)
        if isinstance(last, OverloadedError | ResourceExhaustedError):
            return type(last)(text, metadata=last.metadata, retry_after_ms=last.retry_after_ms)
        return UnavailableError(
            text,
            metadata=last.metadata,
            retry_after_ms=last.retry_after_ms,
            reason=last.instance_reason,
        )
