"""One task as the state holds it."""

from __future__ import annotations

from typing import Final, TypeAlias

from gaia.task.v1 import task_pb2

from gaia_grpc.state.messages import timestamp
from gaia_grpc.state.timers import Timer

PENDING: Final = task_pb2.TASK_STATE_PENDING
SCHEDULED: Final = task_pb2.TASK_STATE_SCHEDULED
CLAIMED: Final = task_pb2.TASK_STATE_CLAIMED
COMPLETED: Final = task_pb2.TASK_STATE_COMPLETED
FAILED: Final = task_pb2.TASK_STATE_FAILED
CANCELLED: Final = task_pb2.TASK_STATE_CANCELLED
BLOCKED: Final = task_pb2.TASK_STATE_BLOCKED

OPEN_STATES: Final = (PENDING, SCHEDULED, CLAIMED, BLOCKED)
FINISHED_STATES: Final = (COMPLETED, FAILED, CANCELLED)

State: TypeAlias = task_pb2.TaskState.ValueType
EventKind: TypeAlias = task_pb2.TaskEventKind.ValueType
Event: TypeAlias = tuple[EventKind, int, str, int, str] | tuple[EventKind, int, str, int, str, str]
"""(kind, time_ms, session_id, claim_token, error), and the error's type where it has one"""

Stub: TypeAlias = tuple[str, str]
"""(task_type, affinity) of a task that is no longer retained."""

NO_EVENT: Final = task_pb2.TASK_EVENT_KIND_UNSPECIFIED
CLAIM_EVENTS: Final = frozenset(
    {
        task_pb2.TASK_EVENT_KIND_CLAIMED,
        task_pb2.TASK_EVENT_KIND_EXTENDED,
        task_pb2.TASK_EVENT_KIND_COMPLETED,
        task_pb2.TASK_EVENT_KIND_ATTEMPT_FAILED,
        task_pb2.TASK_EVENT_KIND_CLAIM_EXPIRED,
        task_pb2.TASK_EVENT_KIND_SESSION_LOST,
        task_pb2.TASK_EVENT_KIND_RELEASED,
    }
)
"""Events that name the session and the token of the claim."""
ID_PREFIX = "t-"
ID_DIGITS = 12


def task_id_of(number: int) -> str:
    """The id of the task with this number; ids sort as their numbers do."""
    return f"{ID_PREFIX}{number:012d}"


def task_number_of(task_id: str) -> int:
    """The number in a task id; 0, which is no task's number, where it is none of our ids."""
    digits = task_id[len(ID_PREFIX) :]
    if not task_id.startswith(ID_PREFIX) or not (digits.isascii() and digits.isdecimal()):
        return 0
    number = int(digits[: ID_DIGITS + 8])
    return number if task_id_of(number) == task_id else 0


def state_name(state: State) -> str:
    """`PENDING` and so on."""
    return task_pb2.TaskState.Name(state).removeprefix("TASK_STATE_")


class Task:
    """A task. There may be a million: no dictionary of its own, no list before its first claim.

    Invariants: CLAIMED has `claim_expire_ms` and a timer for it, SCHEDULED a timer for
    `available_ms`, every other state none. `session_id` and `claim_token` are those of the current
    or last claim; `ended_by` says how that claim ended (`NO_EVENT` while it lives). `epoch` is set
    when the task first becomes PENDING (task_age.py). What few tasks have is in a `TaskExtra`.
    """

    __slots__ = (
        "affinity",
        "available_ms",
        "checkpoint",
        "claim_expire_ms",
        "claim_token",
        "create_ms",
        "digest",
        "ended_by",
        "epoch",
        "history",
        "key",
        "last_error",
        "max_retries",
        "number",
        "payload",
        "priority",
        "progress_micro",
        "result",
        "retry_count",
        "session_id",
        "state",
        "task_type",
        "timer",
        "update_ms",
    )

    def __init__(
        self,
        number: int,
        task_type: str,
        payload: bytes,
        affinity: str,
        priority: int,
        max_retries: int,
        now_ms: int,
    ) -> None:
        self.number = number
        self.task_type = task_type
        self.payload = payload
        self.affinity = affinity
        self.priority = priority
        self.max_retries = max_retries
        self.key: tuple[str, str] | None = None
        self.digest = b""
        self.state: State = PENDING
        self.retry_count = 0
        self.claim_token = 0
        self.session_id = ""
        self.ended_by: EventKind = NO_EVENT
        self.epoch = 0
        self.claim_expire_ms = 0
        self.available_ms = now_ms
        self.create_ms = now_ms
        self.update_ms = now_ms
        self.checkpoint = b""
        self.result = b""
        self.last_error = ""
        self.progress_micro = 0
        # ENQUEUED is not stored: it is told by create_ms as long as no event was dropped.
        self.history: list[Event] | None = None
        self.timer: Timer | None = None

    @property
    def task_id(self) -> str:
        """The id that callers see."""
        return task_id_of(self.number)

    @property
    def stub(self) -> Stub:
        """What a watch may select by and never changes."""
        return (self.task_type, self.affinity)

    def record(self, event: Event, most: int) -> None:
        """Adds an event; keeps the last `most`."""
        if self.history is None:
            self.history = [event]
            return
        self.history.append(event)
        if len(self.history) > most:
            del self.history[: len(self.history) - most]

    def message(
        self, *, payload: bool = False, result: bool = False, history_most: int = 0
    ) -> task_pb2.Task:
        """The task as callers see it; `payload` brings the checkpoint along."""
        message = task_pb2.Task(
            task_id=self.task_id,
            task_type=self.task_type,
            affinity=self.affinity,
            priority=self.priority,
            state=self.state,
            retry_count=self.retry_count,
            max_retries=self.max_retries,
            claim_token=self.claim_token,
            available_time=timestamp(self.available_ms),
            create_time=timestamp(self.create_ms),
            update_time=timestamp(self.update_ms),
            last_error=self.last_error,
        )
        if self.key is not None:
            message.idempotency_key = self.key[1]
        if self.state == CLAIMED:
            message.claimed_by = self.session_id
            message.claim_expire_time.CopyFrom(timestamp(self.claim_expire_ms))
        if self.progress_micro:
            message.progress = self.progress_micro / 1_000_000
        if payload:
            message.payload = self.payload
            message.checkpoint = self.checkpoint
        if result:
            message.result = self.result
        if history_most:
            message.history.extend(self._events(history_most))
        return message

    def _events(self, most: int) -> list[task_pb2.TaskEvent]:
        events = list(self.history or ())
        if len(events) < most:
            events.insert(0, (task_pb2.TASK_EVENT_KIND_ENQUEUED, self.create_ms, "", 0, ""))
        return [
            task_pb2.TaskEvent(
                kind=event[0],
                time=timestamp(event[1]),
                session_id=event[2],
                claim_token=event[3],
                error=event[4],
                error_type=event[5] if len(event) > 5 else "",
            )
            for event in events[-most:]
        ]
