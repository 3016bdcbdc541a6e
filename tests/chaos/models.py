"""The sequential objects that histories are checked against, and how calls become operations.

Two objects of the API are registers as a linearizability check wants them:

* A *claimed task* is a register with many writers: `ExtendClaim` under one claim token stores a
  checkpoint, the last accepted one wins, `GetTask` reads it at any peer, and `CompleteTask` closes
  it with a result. All clients of a group share the token, so their writes race as they may.
  A refused write says little (the claim may just have expired), so it is left out; that a refused
  value never shows is checked elsewhere.
* The *settings* are one register with compare-and-set: `UpdateSettings` raises the version by one,
  with `expected_version` only where it fits. A refused compare-and-set is an observation too: at
  some time while it ran, the version was another one.

Values are unique, so a read names the write that it saw.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from tests.chaos.history import Call, Outcome
from tests.chaos.linearizability import NEVER, Operation, State

MAX_OPERATIONS = 300
MAX_CLIENTS = 8
TASK_INITIAL: State = ("", None)


def task_model(state: Any, operation: Operation) -> State | None:
    """State: (checkpoint, result or None while it is open)."""
    checkpoint, result = state
    match operation.action:
        case ("extend", value):
            return (value, None) if result is None else None
        case ("complete", value):
            return (checkpoint, value) if result in (None, value) else None
        case _:
            return state if operation.is_pending or operation.answer == state else None


def setting_model(state: Any, operation: Operation) -> State | None:
    """State: (version, value). The answer of a change is the new version, or "refused"."""
    version, _ = state
    match operation.action:
        case ("set", value):
            fits = True
        case ("cas", expected, value):
            fits = version == expected
        case _:
            return state if operation.is_pending or operation.answer == state else None
    if operation.is_pending:
        return (version + 1, value) if fits else state
    if operation.answer == "refused":
        return None if fits else state
    return (version + 1, value) if fits and operation.answer == version + 1 else None


def task_operations(calls: Iterable[Call]) -> list[Operation]:
    """Operations on one claimed task; what was refused or failed is left out."""
    found = []
    for call in calls:
        action: Hashable
        answer: Hashable = None
        if call.kind == "extend_claim":
            action = ("extend", call.argument["checkpoint"])
        elif call.kind == "complete_task":
            action = ("complete", call.argument["result"])
        else:
            action = ("read",)
            if call.is_ok:
                answer = (call.answer["checkpoint"], call.answer["result"])
        if call.outcome in (Outcome.OK, Outcome.UNKNOWN):
            found.append(_operation(call, action, answer))
    return [
        operation
        for operation in found
        if operation.action != ("read",) or operation.answer is not None
    ]


def setting_operations(calls: Iterable[Call]) -> list[Operation]:
    """Operations on the settings."""
    found = []
    for call in calls:
        action: Hashable
        answer: Hashable = None
        if call.outcome is Outcome.FAILED:
            continue
        if call.kind == "get_settings":
            if not call.is_ok:
                continue
            action, answer = ("read",), (call.answer["version"], call.answer["value"])
        else:
            expected = call.argument.get("expected")
            value = call.argument["value"]
            action = ("set", value) if expected is None else ("cas", expected, value)
            answer = call.answer.get("version") if call.is_ok else "refused"
        found.append(_operation(call, action, answer))
    return found


def _operation(call: Call, action: Hashable, answer: Hashable) -> Operation:
    unknown = call.outcome is Outcome.UNKNOWN
    return Operation(call.called_at, NEVER if unknown else call.returned_at, action, answer)


def first_operations(operations: Sequence[Operation], most: int) -> list[Operation]:
    """The beginning of a history: what was called before the time at which `most` had been.

    A prefix of a linearizable history is linearizable; what had not returned yet is pending.
    """
    by_call = sorted(operations, key=lambda operation: operation.called_at)
    if len(by_call) <= most:
        return by_call
    end_at = by_call[most].called_at
    return [
        operation
        if operation.returned_at < end_at
        else Operation(operation.called_at, NEVER, operation.action)
        for operation in by_call[:most]
    ]
