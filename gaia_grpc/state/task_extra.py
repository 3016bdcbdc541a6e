"""What few tasks have beside what all have: kept apart, so that a million others pay nothing."""

from __future__ import annotations

from collections.abc import Callable

from gaia.task.v1 import task_pb2

from gaia_grpc.state.context import Context
from gaia_grpc.state.messages import timestamp
from gaia_grpc.state.task_record import task_id_of
from gaia_grpc.state.timers import Timer

DEADLINE_TIMER = "deadline.task"
"""Sorts before all others: of what happens at one instant, the deadline comes first."""


class TaskExtra:
    """Deadline, dependencies and kind of error of one task; its record in a snapshot is the task's.

    `waiting_for` is what of `depends_on` was not COMPLETED when it ended last, ascending; a task
    that FAILED keeps it for a requeue. `delay_ms` counts from the end of the last of them.
    """

    __slots__ = (
        "deadline_ms",
        "delay_ms",
        "depends_on",
        "error_type",
        "failed_by",
        "timer",
        "waiting_for",
    )

    def __init__(self) -> None:
        self.deadline_ms = 0
        self.delay_ms = 0
        self.depends_on: tuple[int, ...] = ()
        self.error_type = ""
        self.failed_by = 0
        self.timer: Timer | None = None
        self.waiting_for: tuple[int, ...] = ()

    def show(self, message: task_pb2.Task) -> None:
        """Adds it to the task as callers see it."""
        if self.deadline_ms:
            message.deadline_time.CopyFrom(timestamp(self.deadline_ms))
        message.last_error_type = self.error_type
        message.depends_on.extend(task_id_of(number) for number in self.depends_on)
        message.pending_dependencies = len(self.waiting_for)


class TaskExtras:
    """The extras by number, and who waits for whom: exactly what their `waiting_for` say.

    `changing` is told before a task's record in a snapshot changes.
    """

    __slots__ = ("_changing", "_context", "_dependents", "_extras")

    def __init__(self, context: Context, changing: Callable[[int], None]) -> None:
        self._context = context
        self._changing = changing
        self._extras: dict[int, TaskExtra] = {}
        self._dependents: dict[int, set[int]] = {}

    def __len__(self) -> int:
        return len(self._extras)

    def get(self, number: int) -> TaskExtra | None:
        """The extra of a task, or None."""
        return self._extras.get(number)

    def restore(self, number: int, extra: TaskExtra, *, is_open: bool) -> None:
        """The extra of a task that came out of a snapshot."""
        self._extras[number] = extra
        self._register(number, extra.waiting_for)
        if is_open and extra.deadline_ms:
            self._arm(number, extra)

    def drop(self, number: int) -> None:
        """The task is no longer retained, and finished before."""
        extra = self._extras.pop(number, None)
        if extra is not None:
            for dependency in extra.waiting_for:
                self._unregister(number, dependency)

    def reset(self, number: int) -> None:
        """The task begins again: without a deadline and a delay, and for no one's failure."""
        extra = self._extras.get(number)
        if extra is not None:
            self._changing(number)
            extra.deadline_ms = extra.delay_ms = extra.failed_by = 0

    def set_error_type(self, number: int, error_type: str) -> None:
        """The kind of the last error; empty where it has none."""
        if error_type or number in self._extras:
            self._of(number).error_type = error_type

    # --- deadlines

    def set_deadline(self, number: int, deadline_ms: int) -> None:
        """The task is given up at this log time."""
        extra = self._of(number)
        extra.deadline_ms = deadline_ms
        self._arm(number, extra)

    def deadline_of(self, number: int) -> int | None:
        """When the task is given up, or None."""
        extra = self._extras.get(number)
        return None if extra is None else extra.deadline_ms or None

    def deadline_fired(self, number: int) -> None:
        """The timer of the deadline is gone: it fired."""
        self._extras[number].timer = None

    def disarm(self, number: int) -> None:
        """The task is finished: its deadline is only shown from now on."""
        extra = self._extras.get(number)
        if extra is not None and extra.timer is not None:
            self._context.timers.cancel(extra.timer)
            extra.timer = None

    # --- dependencies

    def set_dependencies(
        self, number: int, depends_on: tuple[int, ...], waiting_for: tuple[int, ...], delay_ms: int
    ) -> None:
        """The task depends on others and waits for some of them, ascending, and then `delay_ms`."""
        extra = self._of(number)
        extra.depends_on = depends_on
        extra.delay_ms = delay_ms
        extra.waiting_for = waiting_for
        self._register(number, waiting_for)

    def satisfied(self, number: int, dependency: int) -> None:
        """The task waits for this one no more."""
        extra = self._of(number)
        extra.waiting_for = tuple(each for each in extra.waiting_for if each != dependency)
        self._unregister(number, dependency)

    def note_cause(self, number: int, dependency: int) -> None:
        """The task FAILED because this one did not become COMPLETED."""
        self._of(number).failed_by = dependency

    def dependents_of(self, number: int) -> list[int]:
        """The tasks that wait for this one, or ended while they did, ascending."""
        return sorted(self._dependents.get(number, ()))

    def dependent_count(self, number: int) -> int:
        """How many these are."""
        return len(self._dependents.get(number, ()))

    def _of(self, number: int) -> TaskExtra:
        """The extra of a task, which will change."""
        self._changing(number)
        extra = self._extras.get(number)
        if extra is None:
            extra = self._extras[number] = TaskExtra()
        return extra

    def _arm(self, number: int, extra: TaskExtra) -> None:
        extra.timer = self._context.timers.schedule(extra.deadline_ms, DEADLINE_TIMER, number)

    def _register(self, number: int, dependencies: tuple[int, ...]) -> None:
        for dependency in dependencies:
            self._dependents.setdefault(dependency, set()).add(number)

    def _unregister(self, number: int, dependency: int) -> None:
        dependents = self._dependents[dependency]
        dependents.remove(number)
        if not dependents:
            del self._dependents[dependency]
