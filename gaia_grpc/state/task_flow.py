"""Who gets which task.

After every command no session that may get a task waits for one that is pending: what becomes
pending is offered to the waiters at once, and a session that becomes ready looks through the queue.
"""

from __future__ import annotations

from collections.abc import Sequence

from gaia.command.v1 import snapshot_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.errors import invariant
from gaia_grpc.state import topics
from gaia_grpc.state.context import Context
from gaia_grpc.state.session_record import Session
from gaia_grpc.state.sessions import SessionTable
from gaia_grpc.state.snapshot import Part, list_section, records_section, single_section
from gaia_grpc.state.sweep import Sweep
from gaia_grpc.state.task_record import CLAIMED, Task
from gaia_grpc.state.task_store import TaskStore
from gaia_grpc.state.task_waits import Waiter, WaitList, decode_waiter

MAX_CLAIM_SIZE_BYTES = 3 << 20
"""Payloads and checkpoints in one answer: gRPC clients take 4 MiB unless they are told otherwise,
and a claim that can't be delivered holds its tasks until it expires."""
WAIT_TIMER = "task.wait"


class TaskFlow:
    """Moves tasks between the queue and the sessions."""

    def __init__(self, context: Context, sessions: SessionTable, store: TaskStore) -> None:
        self._context = context
        self._sessions = sessions
        self._store = store
        self.waits = WaitList()
        self._granted = Sweep[int](context, "task.grant_sweep", self._forget_grant)
        context.timers.register(WAIT_TIMER, self._wait_due)
        self.parts: Sequence[Part] = (
            single_section("wait_counters", self._encode_counters, self._load_counters),
            records_section("wait", self.waits.frozen, self._load_wait, loaded=self._waits_loaded),
            list_section("granted_waits", self._granted.items, _encode_granted, self._load_granted),
        )

    # --- into the queue

    def enter(self, task: Task) -> None:
        """The task is pending now: whoever waited longest for one like it gets it."""
        self._store.make_pending(task)
        self.offer(task)

    def offer(self, task: Task) -> None:
        """Grants to waiters until the task is taken or nobody waits for it.

        Each grant takes what is best for its waiter, which may be another task of the same batch.
        """
        while task.state == task_pb2.TASK_STATE_PENDING:
            waiter = self.waits.first_for(task)
            if waiter is None:
                return
            granted = self._grant(waiter)
            invariant(granted, f"the waiter {waiter.waiter_id} can't take what it waits for")

    # --- claims

    def take(
        self, session: Session, most: int, task_types: Sequence[str], *, include_unmatched: bool
    ) -> list[Task]:
        """Claims up to `most` tasks, no more than the session may hold, and after the first only
        as many bytes as one answer can bring."""
        taken: list[Task] = []
        size_bytes = 0
        for _ in range(min(most, session.free_capacity)):
            task = self._store.index.best(
                session.specialty, task_types, include_unmatched=include_unmatched
            )
            if task is None:
                break
            size_bytes += len(task.payload) + len(task.checkpoint)
            if taken and size_bytes > MAX_CLAIM_SIZE_BYTES:
                break
            self._store.claim(task, session)
            taken.append(task)
        if taken:
            self.waits.session_changed(session)
        return taken

    def wait(
        self,
        session: Session,
        most: int,
        task_types: Sequence[str],
        wait_ms: int,
        *,
        include_unmatched: bool,
    ) -> Waiter:
        """A claim that found nothing waits."""
        waiter = Waiter(
            self.waits.last_id + 1, session, most, task_types, include_unmatched=include_unmatched
        )
        waiter.deadline_ms = self._context.now_ms + wait_ms
        self.waits.add(waiter)
        self._set_timer(waiter)
        return waiter

    def rename_wait(self, waiter: Waiter) -> None:
        """The wait goes on for a new caller; the former one is told that it has ended."""
        self._context.touch(topics.claim_wait(waiter.waiter_id))
        self._drop_timer(waiter)
        self.waits.rename(waiter)
        self._set_timer(waiter)

    def end_wait(self, waiter: Waiter) -> None:
        """The waiter waits no more and was granted nothing."""
        self._drop_timer(waiter)
        self.waits.stop_waiting(waiter)
        self.waits.forget(waiter)
        self._context.touch(topics.claim_wait(waiter.waiter_id))

    def live_grants(self, grants: Sequence[tuple[int, int]]) -> list[Task]:
        """The tasks among (number, token) pairs whose claim still lives."""
        tasks = []
        for number, token in grants:
            task = self._store.numbered(number)
            if task is not None and task.state == CLAIMED and task.claim_token == token:
                tasks.append(task)
        return tasks

    def serve(self, session: Session | None) -> None:
        """The session may have room again: its waiting claims look through the queue."""
        if session is None:
            return
        for waiter in self.waits.of_session(session):
            if session.ready:
                self._grant(waiter)

    def session_changed(self, session: Session) -> None:
        """The session's readiness may have changed."""
        self.waits.session_changed(session)
        self.serve(session)

    def end_waits(self, session: Session) -> int:
        """The session takes no task any more: its waits end; returns how many."""
        waiters = self.waits.of_session(session)
        for waiter in waiters:
            self.end_wait(waiter)
        return len(waiters)

    # --- parts

    def _grant(self, waiter: Waiter) -> bool:
        tasks = self.take(
            waiter.session,
            waiter.max_tasks,
            waiter.task_types,
            include_unmatched=waiter.include_unmatched,
        )
        if not tasks:
            return False
        self._drop_timer(waiter)
        self.waits.grant(waiter, [(task.number, task.claim_token) for task in tasks])
        retention_ms = self._context.settings.milliseconds("request.retention")
        self._granted.add(self._context.now_ms + retention_ms, waiter.waiter_id)
        self._context.touch(topics.claim_wait(waiter.waiter_id))
        return True

    def _set_timer(self, waiter: Waiter) -> None:
        waiter.timer = self._context.timers.schedule(
            waiter.deadline_ms, WAIT_TIMER, waiter.waiter_id
        )

    def _drop_timer(self, waiter: Waiter) -> None:
        if waiter.timer is not None:
            self._context.timers.cancel(waiter.timer)
            waiter.timer = None

    def _forget_grant(self, waiter_id: int) -> None:
        waiter = self.waits.find(waiter_id)
        if waiter is not None:
            self.waits.forget(waiter)

    # --- snapshots

    def _encode_counters(self) -> bytes:
        return snapshot_pb2.WaitCounters(
            last_id=self.waits.last_id, granted_due_ms=self._granted.due_ms
        ).SerializeToString(deterministic=True)

    def _load_counters(self, record: bytes) -> None:
        counters = snapshot_pb2.WaitCounters.FromString(record)
        self.waits.last_id = counters.last_id
        self._granted.set_due(counters.granted_due_ms)

    def _load_wait(self, record: bytes) -> None:
        self.waits.restore(decode_waiter(record, self._sessions.numbered))

    def _waits_loaded(self) -> None:
        for waiter in self.waits.restored():
            self._set_timer(waiter)

    def _load_granted(self, record: bytes) -> None:
        message = snapshot_pb2.GrantedWaits.FromString(record)
        self._granted.restore(zip(message.expire_ms, message.waiter_ids, strict=True))

    # --- timers

    def _wait_due(self, key: int | str) -> None:
        waiter = self.waits.find(int(key))
        if waiter is not None and not waiter.grants:
            waiter.timer = None
            self.end_wait(waiter)


def _encode_granted(items: Sequence[tuple[int, int]]) -> bytes:
    return snapshot_pb2.GrantedWaits(
        expire_ms=[expire_ms for expire_ms, _ in items],
        waiter_ids=[waiter_id for _, waiter_id in items],
    ).SerializeToString(deterministic=True)
