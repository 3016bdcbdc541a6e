"""The tasks and the moves between their states; every index, counter and timer moves along here.

PENDING <-> SCHEDULED      PENDING -> CLAIMED -> COMPLETED
CLAIMED -> PENDING (released) | SCHEDULED (counted attempt) | FAILED (no retry left)
PENDING | SCHEDULED | CLAIMED -> CANCELLED      FAILED | CANCELLED -> PENDING (requeued)

No other module sets a field of a task: a snapshot under way must hear of each change first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from gaia.command.v1 import snapshot_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.state import refusal, topics
from gaia_grpc.state.changes import ChangeLog
from gaia_grpc.state.context import Context
from gaia_grpc.state.session_record import Session
from gaia_grpc.state.sessions import SessionTable
from gaia_grpc.state.snapshot import (
    FrozenInOrder,
    Part,
    list_section,
    records_section,
    single_section,
)
from gaia_grpc.state.sweep import Sweep
from gaia_grpc.state.task_index import PendingIndex
from gaia_grpc.state.task_record import (
    CLAIMED,
    COMPLETED,
    FINISHED_STATES,
    NO_EVENT,
    OPEN_STATES,
    PENDING,
    SCHEDULED,
    EventKind,
    State,
    Stub,
    Task,
    task_number_of,
)
from gaia_grpc.state.task_snapshot import (
    decode_finished,
    decode_task,
    encode_finished,
    encode_task,
)

CLAIM_TIMER = "task.claim"
AVAILABLE_TIMER = "task.available"
BLOCK_BITS = 10


class TaskStore:
    """Retained tasks by number. Who gets a task is decided elsewhere (task_claims.py)."""

    def __init__(self, context: Context, sessions: SessionTable) -> None:
        self._context = context
        self._sessions = sessions
        self._tasks: dict[int, Task] = {}
        self._by_key: dict[tuple[str, str], Task] = {}
        self._last_number = 0
        self._last_token = 0
        self.index = PendingIndex(self._tasks)
        self.counts: dict[State, int] = dict.fromkeys((*OPEN_STATES, *FINISHED_STATES), 0)
        self.changes = ChangeLog[State, Stub](context)
        self.enqueued_total = 0
        self.claims_total = 0
        self.completed_total = 0
        self._finished = Sweep[tuple[int, int]](context, "task.purge", self._purge)
        # How many retained tasks are in each run of 1,024 numbers: lists skip what was purged.
        self._block_counts: dict[int, int] = {}
        self._blocks: list[int] = []
        self._frozen = FrozenInOrder(self._tasks, encode_task)
        self.parts: Sequence[Part] = (
            single_section("task_counters", self._encode_counters, self._load_counters),
            records_section("task", self._frozen, self._load),
            list_section(
                "finished_tasks", self._finished.items, encode_finished, self._load_finished
            ),
        )

    # --- reading

    def find(self, task_id: str) -> Task | None:
        """The task, or None."""
        return self._tasks.get(task_number_of(task_id))

    def existing(self, task_id: str) -> Task:
        """The task. Raises `Refused` (NOT_FOUND)."""
        task = self.find(task_id)
        if task is None:
            raise refusal.not_found("task", task_id)
        return task

    def numbered(self, number: int) -> Task | None:
        """The task with this number, or None."""
        return self._tasks.get(number)

    def with_key(self, key: tuple[str, str]) -> Task | None:
        """The task of an idempotency key (principal, key), or None."""
        return self._by_key.get(key)

    def open_count(self) -> int:
        """Tasks that are not finished."""
        return sum(self.counts[state] for state in OPEN_STATES)

    def after(self, number: int) -> Iterator[Task]:
        """Tasks with higher numbers, in their order."""
        for place in range(
            bisect_left(self._blocks, (number + 1) >> BLOCK_BITS), len(self._blocks)
        ):
            start = self._blocks[place] << BLOCK_BITS
            for candidate in range(max(start, number + 1), start + (1 << BLOCK_BITS)):
                task = self._tasks.get(candidate)
                if task is not None:
                    yield task

    # --- moves

    def add(
        self,
        task_type: str,
        payload: bytes,
        affinity: str,
        priority: int,
        max_retries: int,
        key: tuple[str, str] | None,
        digest: bytes,
    ) -> Task:
        """A new task, PENDING and not yet in the index: `make_pending` or `schedule` follows."""
        self._last_number += 1
        task = Task(
            self._last_number,
            task_type,
            payload,
            affinity,
            priority,
            max_retries,
            self._context.now_ms,
        )
        task.key = key
        task.digest = digest
        self._insert(task)
        self.enqueued_total += 1
        self.counts[PENDING] += 1
        self._changed(task, None)
        return task

    def make_pending(self, task: Task) -> None:
        """The task waits for a claim, at the place of its age."""
        self._move(task, PENDING)
        task.available_ms = self._context.now_ms
        self.index.add(task)

    def schedule(self, task: Task, delay_ms: int) -> None:
        """The task waits for its time."""
        self._move(task, SCHEDULED)
        task.available_ms = self._context.now_ms + delay_ms
        task.timer = self._context.timers.schedule(task.available_ms, AVAILABLE_TIMER, task.number)

    def claim(self, task: Task, session: Session) -> None:
        """The session holds the pending task under a new token."""
        self._move(task, CLAIMED)
        self.index.remove(task)
        self._last_token += 1
        task.claim_token = self._last_token
        task.session_id = session.session_id
        task.ended_by = NO_EVENT
        task.progress_micro = 0
        session.claims.add(task.number)
        self._sessions.claims_changed(session)
        self.claims_total += 1
        self._set_claim_timer(task)
        self.record(task, task_pb2.TASK_EVENT_KIND_CLAIMED)

    def extend(self, task: Task, progress_micro: int, checkpoint: bytes) -> None:
        """The claim is renewed; an empty checkpoint leaves the one before."""
        self._frozen.changing(task.number)
        self._set_claim_timer(task)
        task.progress_micro = progress_micro
        if checkpoint:
            task.checkpoint = checkpoint
        self.record(task, task_pb2.TASK_EVENT_KIND_EXTENDED)
        task.update_ms = self._context.now_ms
        self._changed(task, task.state)

    def end_claim(
        self, task: Task, holder: Session | None, kind: EventKind, error: str = ""
    ) -> None:
        """The claim is over; the caller moves the task on to its next state."""
        self._frozen.changing(task.number)
        self._drop_timer(task)
        task.claim_expire_ms = 0
        task.ended_by = kind
        if holder is not None:
            holder.claims.discard(task.number)
            self._sessions.claims_changed(holder)
        self.record(task, kind, error)

    def leave_queue(self, task: Task, state: State) -> None:
        """A pending or scheduled task moves to `state`."""
        was_pending = task.state == PENDING
        self._drop_timer(task)
        self._move(task, state)
        if was_pending:
            self.index.remove(task)

    def finish(self, task: Task, state: State) -> None:
        """A task whose claim has ended moves to a finished state."""
        self._move(task, state)

    def complete(self, task: Task, result: bytes) -> None:
        """A task whose claim has ended is done."""
        self._move(task, COMPLETED)
        task.result = result
        self.completed_total += 1

    def count_attempt(self, task: Task, error: str) -> None:
        """One attempt more has failed."""
        self._frozen.changing(task.number)
        task.retry_count += 1
        task.last_error = error

    def reset_attempts(self, task: Task) -> None:
        """The task has all its retries again."""
        self._frozen.changing(task.number)
        task.retry_count = 0

    def note_error(self, task: Task, error: str) -> None:
        """What went wrong last, or why the task was called off."""
        self._frozen.changing(task.number)
        task.last_error = error

    def retain(self, task: Task) -> None:
        """The task is finished: kept for task.retention; the oldest go over task.max_finished."""
        settings = self._context.settings
        expire_ms = self._context.now_ms + settings.milliseconds("task.retention")
        self._finished.add(expire_ms, (task.number, task.update_ms))
        most = settings.integer("task.max_finished")
        while sum(self.counts[state] for state in FINISHED_STATES) > most:
            self._finished.drop_oldest()

    def record(self, task: Task, kind: EventKind, error: str = "") -> None:
        """Adds to the task's history."""
        self._frozen.changing(task.number)
        in_claim = kind in CLAIM_EVENTS
        event = (
            kind,
            self._context.now_ms,
            task.session_id if in_claim else "",
            task.claim_token if in_claim else 0,
            error,
        )
        task.record(event, self._context.settings.integer("task.max_history"))

    def timer_fired(self, task: Task) -> None:
        """The task's timer is gone: it fired."""
        task.timer = None

    def _move(self, task: Task, state: State) -> None:
        self._frozen.changing(task.number)
        before = task.state
        self.counts[before] -= 1
        self.counts[state] += 1
        task.state = state
        task.update_ms = self._context.now_ms
        self._changed(task, before)

    def _changed(self, task: Task, before: State | None) -> None:
        self.changes.note(task.number, before, task.state)
        self._context.touch(topics.TASKS)

    def _set_claim_timer(self, task: Task) -> None:
        """The claim ends task.claim_timeout from now."""
        timeout_ms = self._context.settings.milliseconds("task.claim_timeout")
        self._drop_timer(task)
        task.claim_expire_ms = self._context.now_ms + timeout_ms
        task.timer = self._context.timers.schedule(task.claim_expire_ms, CLAIM_TIMER, task.number)

    def _drop_timer(self, task: Task) -> None:
        if task.timer is not None:
            self._context.timers.cancel(task.timer)
            task.timer = None

    def _purge(self, item: tuple[int, int]) -> None:
        number, finish_ms = item
        task = self._tasks.get(number)
        # A task that was requeued since is in the queue again, or finished again later.
        if task is None or task.state not in FINISHED_STATES or task.update_ms != finish_ms:
            return
        self._frozen.changing(number)
        self.counts[task.state] -= 1
        del self._tasks[number]
        if task.key is not None:
            del self._by_key[task.key]
        block = number >> BLOCK_BITS
        self._block_counts[block] -= 1
        # The last block may still get tasks; `add` drops it where it stayed empty.
        if self._block_counts[block] == 0 and block != self._last_number >> BLOCK_BITS:
            del self._block_counts[block]
            del self._blocks[bisect_left(self._blocks, block)]
        self.changes.note(number, task.state, None, task.stub)
        self._context.touch(topics.TASKS)

    def _insert(self, task: Task) -> None:
        number = task.number
        self._tasks[number] = task
        block = number >> BLOCK_BITS
        if block not in self._block_counts:
            if self._blocks and self._block_counts[self._blocks[-1]] == 0:
                del self._block_counts[self._blocks.pop()]
            self._block_counts[block] = 0
            self._blocks.append(block)
        self._block_counts[block] += 1
        if task.key is not None:
            self._by_key[task.key] = task

    # --- snapshots

    def _encode_counters(self) -> bytes:
        return snapshot_pb2.TaskCounters(
            last_number=self._last_number,
            last_token=self._last_token,
            enqueued_total=self.enqueued_total,
            claims_total=self.claims_total,
            completed_total=self.completed_total,
            finished_due_ms=self._finished.due_ms,
        ).SerializeToString(deterministic=True)

    def _load_counters(self, record: bytes) -> None:
        counters = snapshot_pb2.TaskCounters.FromString(record)
        self._last_number = counters.last_number
        self._last_token = counters.last_token
        self.enqueued_total = counters.enqueued_total
        self.claims_total = counters.claims_total
        self.completed_total = counters.completed_total
        self._finished.set_due(counters.finished_due_ms)
        self.changes.restored()

    def _load(self, record: bytes) -> None:
        task = decode_task(record)
        if task.number in self._tasks or task.number > self._last_number:
            raise ValueError(f"the task {task.task_id} is there twice or was never added")
        self._insert(task)
        self.counts[task.state] += 1
        timers = self._context.timers
        if task.state == PENDING:
            self.index.add(task)
        elif task.state == SCHEDULED:
            task.timer = timers.schedule(task.available_ms, AVAILABLE_TIMER, task.number)
        elif task.state == CLAIMED:
            holder = self._sessions.find(task.session_id)
            if holder is None:
                raise ValueError(f"the task {task.task_id} is claimed by no session")
            holder.claims.add(task.number)
            task.timer = timers.schedule(task.claim_expire_ms, CLAIM_TIMER, task.number)

    def _load_finished(self, record: bytes) -> None:
        self._finished.restore(decode_finished(record))


CLAIM_EVENTS = frozenset(
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
