"""Is a history linearizable? Wing and Gong's search with Lowe's memory, one object at a time.

Linearizability composes over objects (Herlihy and Wing 1990, theorem 1), so each key is searched
alone. The search keeps the calls and returns of a key in one list, in the order of time. From the
head on it tries each call before the first return: where the model allows the operation, its two
events are taken out and the search goes on at the head; where a return comes first, the last choice
is taken back. A pair (operations done, state) that was met is not searched again (Lowe 2017).

An operation whose outcome is unknown has no return: it may take effect at any time after its call,
or never. The search is exponential in the worst case, so it has a budget; where that runs out, the
history is *not verified*, which is no success.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import Enum

NEVER = float("inf")
BUDGET_CHECK_STEPS = 4_096


@dataclass(frozen=True, slots=True)
class Operation:
    """One call on one object. `returned_at` is `NEVER` where the outcome is unknown."""

    called_at: float
    returned_at: float
    action: Hashable
    """What was asked, in the words of the model."""
    answer: Hashable = None
    """What came back; without meaning where the outcome is unknown."""

    @property
    def is_pending(self) -> bool:
        """Whether nobody knows how it ended."""
        return self.returned_at == NEVER


State = Hashable
Model = Callable[[State, Operation], State | None]
"""The state after the operation, or None where the object would not have answered like that."""


class Verdict(Enum):
    """What the search found."""

    LINEARIZABLE = "linearizable"
    VIOLATED = "violated"
    NOT_VERIFIED = "not verified in time"


class _Event:
    """A call or a return in the doubly linked list of what is not placed yet."""

    __slots__ = ("after", "before", "call", "number", "operation", "returning")

    def __init__(self, operation: Operation | None, number: int, call: _Event | None) -> None:
        self.operation = operation
        self.number = number
        self.call = call
        """Of a return: its call. None marks a call."""
        self.returning: _Event | None = None
        self.before: _Event = self
        self.after: _Event | None = None

    def unlink(self) -> None:
        self.before.after = self.after
        if self.after is not None:
            self.after.before = self.before

    def relink(self) -> None:
        self.before.after = self
        if self.after is not None:
            self.after.before = self


def check(
    operations: Sequence[Operation], model: Model, initial: State, budget_s: float = 60.0
) -> Verdict:
    """Searches for an order of the operations that explains every answer.

    Args:
        operations: of one object, in any order.
        model: the sequential object.
        initial: its state before the first operation.
        budget_s: longest search in seconds.
    """
    head = _link(operations)
    needed = sum(1 << n for n, operation in enumerate(operations) if not operation.is_pending)
    deadline = time.monotonic() + budget_s
    state, done = initial, 0
    seen: set[tuple[int, State]] = {(0, initial)}
    choices: list[tuple[_Event, State]] = []
    event = head.after
    steps = 0
    while done & needed != needed:
        steps += 1
        if steps % BUDGET_CHECK_STEPS == 0 and time.monotonic() > deadline:
            return Verdict.NOT_VERIFIED
        if event is not None and event.operation is not None:
            after = model(state, event.operation)
            step = (done | 1 << event.number, after)
            if after is not None and step not in seen:
                seen.add(step)
                choices.append((event, state))
                done, state = step
                _take_out(event)
                event = head.after
            else:
                event = event.after
            continue
        # A return whose operation has no place yet, or the end: the last choice was wrong.
        if not choices:
            return Verdict.VIOLATED
        event, state = choices.pop()
        done &= ~(1 << event.number)
        _put_back(event)
        event = event.after
    return Verdict.LINEARIZABLE


def _link(operations: Sequence[Operation]) -> _Event:
    """All events behind a head, by time; at the same time calls come first, as concurrent."""
    timed: list[tuple[float, int, int, _Event]] = []
    for number, operation in enumerate(operations):
        call = _Event(operation, number, None)
        timed.append((operation.called_at, 0, number, call))
        if not operation.is_pending:
            call.returning = _Event(None, number, call)
            timed.append((operation.returned_at, 1, number, call.returning))
    head = last = _Event(None, -1, None)
    for _, _, _, event in sorted(timed, key=lambda item: item[:3]):
        last.after, event.before = event, last
        last = event
    return head


def _take_out(call: _Event) -> None:
    call.unlink()
    if call.returning is not None:
        call.returning.unlink()


def _put_back(call: _Event) -> None:
    if call.returning is not None:
        call.returning.relink()
    call.relink()
