"""The queue against the plain one, over random histories."""

from __future__ import annotations

from typing import Any

from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gaia_grpc.state.machine import StateMachine
from tests.state.harness import START_MS, Log, command
from tests.state.plain_queue import (
    AGEING_MS,
    MAX_DEPENDENTS,
    OPEN,
    PlainPolicy,
    PlainQueue,
    PlainSession,
    PlainTask,
)  # fmt: skip
from tests.state.snapshot_checks import restored, whole

SUBJECTS = st.sampled_from(["general", "math", "art"])
TYPES = st.sampled_from(["grade", "tutor"])
NAMES = st.sampled_from(["w1", "w2", "w3", "w4"])
PICK = st.integers(0, 10**6)


def milliseconds(value: int) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(value)
    return duration


class QueueComparison(RuleBasedStateMachine):
    """Every rule does the same to both and compares what came of it."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Log(
            ("task.claim_timeout", "20s"),
            ("task.ageing_interval", "10s"),
            ("task.max_dependents", str(MAX_DEPENDENTS)),
        )
        self.plain = PlainQueue(START_MS)

    # --- sessions

    @rule(name=NAMES, specialty=SUBJECTS, capacity=st.integers(1, 3))
    def register(self, name: str, specialty: str, capacity: int) -> None:
        body = {"name": name, "specialty": specialty, "max_concurrent_tasks": capacity}
        known = next((s for s in self.plain.sessions if s.name == name), None)
        if known is not None and known.health != "FAILED":
            assert self.log.refuse(register_session=body).reason == "NAME_TAKEN"
            return
        session_id = self.log.do(register_session=body).session.session.session_id
        fresh = PlainSession(name, session_id, specialty, capacity, self.plain.now_ms)
        if known is None:
            self.plain.sessions.append(fresh)
        else:
            assert known.session_id == session_id
            self.plain.sessions[self.plain.sessions.index(known)] = fresh

    @precondition(lambda self: self.plain.sessions)
    @rule(pick=PICK)
    def beat(self, pick: int) -> None:
        session = self.session(pick)
        outcome = self.log.beat(session.session_id)[0]
        if session.health == "FAILED":
            assert outcome.refusal.reason == "SESSION_FAILED"
            return
        session.beat_ms = self.plain.now_ms
        if session.health == "DEGRADED":
            session.health = "HEALTHY"
            self.plain.serve(session.session_id)

    @precondition(lambda self: self.plain.sessions)
    @rule(pick=PICK, chance=st.integers(0, 3))
    def deregister(self, pick: int, chance: int) -> None:
        if chance:
            return
        session = self.session(pick)
        self.log.do(deregister_session={"session_id": session.session_id})
        self.plain.sessions.remove(session)
        self.plain.lose(session, counted=False)

    # --- tasks

    @rule(
        specs=st.lists(
            st.tuples(
                st.tuples(TYPES, SUBJECTS, st.integers(-1, 1)),
                st.sampled_from([None, 0, 2]),
                st.sampled_from([0, 0, 3_000]),
                st.sampled_from([0, 0, 0, 2_000, 7_000, 25_000]),
                st.lists(st.one_of(st.integers(-3, -1), PICK), max_size=2),
            ),
            min_size=1,
            max_size=4,
        )
    )
    def enqueue(self, specs: list[tuple[Any, ...]]) -> None:
        planned, refused = self.plain.plan(specs)
        tasks = []
        for (task_type, affinity, priority), retries, delay_ms, deadline_ms, names in planned:
            tasks.append(
                {
                    "task_type": task_type, "affinity": affinity, "priority": priority,
                    "max_retries": retries, "delay_ms": delay_ms, "deadline_ms": deadline_ms,
                    "depends_on": names,
                }
            )  # fmt: skip
        if refused:
            assert self.log.refuse(enqueue_tasks={"tasks": tasks}).reason == refused
            return
        added: list[PlainTask] = []
        base = len(self.plain.tasks)
        for (task_type, affinity, priority), retries, delay_ms, deadline_ms, names in planned:
            number = len(self.plain.tasks) + 1
            task = PlainTask(number, task_type, affinity, priority, 0)
            task.max_retries = self.plain.policy(task).max_retries if retries is None else retries
            task.delay_ms = delay_ms
            task.deadline_ms = self.plain.now_ms + deadline_ms if deadline_ms else 0
            numbers = [base + 1 + int(n[1:]) if n[0] == "#" else int(n[2:]) for n in names]
            task.depends_on = tuple(dict.fromkeys(numbers))
            task.waiting_for = [
                n for n in sorted(task.depends_on) if n > base or self.plain.state(n) != "COMPLETED"
            ]
            self.plain.tasks.append(task)
            added.append(task)
        for task in added:
            if task.waiting_for:
                task.state = "BLOCKED"
            elif task.delay_ms:
                task.state, task.due_ms = "SCHEDULED", self.plain.now_ms + task.delay_ms
            else:
                task.epoch = (self.plain.now_ms - START_MS) // AGEING_MS
        for task in added:
            if task.state == "PENDING":
                self.plain.offer(task)
        self.log.do(enqueue_tasks={"tasks": tasks})

    @rule(
        task_type=TYPES,
        retries=st.sampled_from([0, 3]),
        base_ms=st.sampled_from([0, 2_000]),
        claim_ms=st.sampled_from([5_000, 20_000]),
        final=st.sampled_from(["none", "fatal"]),
        retention_ms=st.sampled_from([None, None, 1_000, 8_500]),
        delete=st.integers(0, 3),
    )
    def put_policy(
        self,
        task_type: str,
        retries: int,
        base_ms: int,
        claim_ms: int,
        final: str,
        retention_ms: int | None,
        delete: int,
    ) -> None:
        if delete == 0:
            known = self.plain.policies.pop(task_type, None)
            result = self.log.apply(command(delete_task_policy={"task_type": task_type}))
            assert (result.refusal.reason == "NOT_FOUND") == (known is None)
            return
        policy = PlainPolicy(retries, base_ms, claim_ms, final, retention_ms)
        self.plain.policies[task_type] = policy
        body: dict[str, Any] = {
            "task_type": task_type,
            "max_retries": retries,
            "retry_base": milliseconds(base_ms),
            "claim_timeout": milliseconds(claim_ms),
            "final_error_types": [final],
        }
        if retention_ms is not None:
            body["retention"] = milliseconds(retention_ms)
        self.log.do(put_task_policy=body)

    @rule()
    def restore(self) -> None:
        """Any peer may have come from a snapshot."""
        self.log.machine = restored(whole(self.log.machine))

    @precondition(lambda self: self.plain.sessions)
    @rule(
        pick=PICK,
        most=st.integers(1, 3),
        types=st.lists(TYPES, max_size=2),
        unmatched=st.booleans(),
        wait_ms=st.sampled_from([0, 8_000, 40_000]),
    )
    def claim(self, pick: int, most: int, types: list[str], unmatched: bool, wait_ms: int) -> None:
        session = self.session(pick)
        body = {
            "session_id": session.session_id,
            "max_tasks": most,
            "task_types": types,
            "include_unmatched": unmatched,
            "wait_ms": wait_ms,
        }
        if session.health != "HEALTHY":
            assert self.log.refuse(claim_tasks=body).reason == f"SESSION_{session.health}"
            return
        result = self.log.do(claim_tasks=body).claim
        taken = self.plain.take(session, most, types, unmatched)
        assert [(int(t.task_id[2:]), t.claim_token) for t in result.tasks] == taken
        if not taken and wait_ms:
            waiter = self.plain.wait(session, most, tuple(types), unmatched, wait_ms)
            assert result.waiter_id == waiter
        else:
            assert result.waiter_id == 0

    @precondition(lambda self: self.plain.last_waiter)
    @rule(pick=PICK)
    def cancel_wait(self, pick: int) -> None:
        waiter_id = pick % self.plain.last_waiter + 1
        self.log.do(cancel_claim_wait={"waiter_id": waiter_id})
        plain = self.plain
        plain.waiters = [waiter for waiter in plain.waiters if waiter.waiter_id != waiter_id]
        granted = plain.fetched.pop(waiter_id, None)
        live = [
            plain.tasks[number - 1]
            for number, token in (granted.grants if granted else ())
            if (plain.tasks[number - 1].state, plain.tasks[number - 1].token) == ("CLAIMED", token)
        ]
        for task in live:
            plain.pending(task)
            plain.serve(task.holder)

    @precondition(lambda self: self.plain.tasks)
    @rule(
        pick=PICK,
        verb=st.sampled_from(["complete", "fail", "permanent", "release", "extend"]),
        stale=st.integers(0, 5),
        retry_ms=st.sampled_from([None, None, 0, 6_000]),
        error_type=st.sampled_from(["", "flaky", "fatal"]),
    )
    def end_claim(
        self, pick: int, verb: str, stale: int, retry_ms: int | None, error_type: str
    ) -> None:
        held = [task for task in self.plain.tasks if task.state == "CLAIMED"]
        if not held:
            return
        task = held[pick % len(held)]
        claim: dict[str, Any] = {
            "task_id": f"t-{task.number:012d}",
            "claim_token": task.token - (stale == 0),
            "session_id": task.holder,
        }
        if verb == "complete":
            session_id = claim.pop("session_id")
            body = {"session_id": session_id, "completions": [claim]}
            outcome = self.log.do(complete_tasks=body).completions.outcomes[0]
            refused = outcome.refusal.reason
        else:
            names = {"release": "release_task", "extend": "extend_claim"}
            if verb in ("fail", "permanent"):
                claim["permanent"] = verb == "permanent"
                claim["retry_delay_ms"] = retry_ms
                claim["error_type"] = error_type
            sent = command(**{names.get(verb, "fail_task"): claim})
            refused = self.log.apply(sent).refusal.reason
        assert refused == ("" if stale else "STALE_CLAIM")
        if not stale:
            return
        if verb == "complete":
            self.plain.finish(task, "COMPLETED")
            self.plain.serve(task.holder)
        elif verb == "extend":
            task.due_ms = self.plain.now_ms + self.plain.policy(task).claim_ms
        elif verb == "release":
            self.plain.pending(task)
            self.plain.serve(task.holder)
        else:
            self.plain.attempt_failed(
                task, permanent=verb == "permanent", retry_ms=retry_ms, error_type=error_type
            )

    @precondition(lambda self: self.plain.tasks)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        task = self.plain.tasks[pick % len(self.plain.tasks)]
        body = {"task_id": f"t-{task.number:012d}"}
        refused = self.log.apply(command(cancel_task=body)).refusal.reason
        if task.state in OPEN:
            self.plain.stop(task, "CANCELLED")
        elif task.state == "PURGED":
            assert refused == "NOT_FOUND"
            return
        assert refused == ("" if task.state == "CANCELLED" else "ILLEGAL_TRANSITION")

    @precondition(lambda self: any(t.state in ("FAILED", "CANCELLED") for t in self.plain.tasks))
    @rule(pick=PICK, any_state=st.integers(0, 4), include=st.booleans())
    def requeue(self, pick: int, any_state: int, include: bool) -> None:
        ended = [t for t in self.plain.tasks if t.state in ("FAILED", "CANCELLED")]
        chosen = ended if any_state else self.plain.tasks
        task = chosen[pick % len(chosen)]
        others = self.plain.failed_with(task) if include else []
        expected = ""
        if task.state == "PURGED":
            expected = "NOT_FOUND"
        elif task.state not in ("FAILED", "CANCELLED"):
            expected = "ILLEGAL_TRANSITION"
        elif self.plain.stuck(task):
            expected = "DEPENDENCY_FAILED"
        elif len(others) > MAX_DEPENDENTS:
            expected = "TOO_MANY_DEPENDENTS"
        body = {"task_id": f"t-{task.number:012d}", "include_dependents": include}
        result = self.log.apply(command(requeue_task=body))
        assert result.refusal.reason == expected
        if expected:
            return
        self.plain.requeue(task)
        count = 0
        for other in others:
            if not self.plain.stuck(other):
                self.plain.requeue(other)
                count += 1
        assert result.tasks.requeued_dependents == count

    @rule(milliseconds=st.sampled_from([1, 500, 2_000, 9_000, 16_000, 31_000]))
    def advance(self, milliseconds: int) -> None:
        self.log.advance(milliseconds)
        self.plain.advance(milliseconds)

    # --- comparison

    def session(self, pick: int) -> PlainSession:
        return self.plain.sessions[pick % len(self.plain.sessions)]

    @invariant()
    def tasks_agree(self) -> None:
        page = self.log.ask(list_tasks={"page_size": 1_000}).list_tasks
        found = [
            (
                (int(t.task_id[2:]), t.state, t.retry_count, t.claim_token, t.claimed_by),
                (t.deadline_time.ToMilliseconds(), t.last_error_type, t.max_retries),
                (tuple(int(name[2:]) for name in t.depends_on), t.pending_dependencies),
            )
            for t in page.tasks
        ]
        assert found == [
            (
                (
                    task.number,
                    task_pb2.TaskState.Value(f"TASK_STATE_{task.state}"),
                    task.retries,
                    task.token,
                    task.holder if task.state == "CLAIMED" else "",
                ),
                (task.deadline_ms, task.error_type, task.max_retries),
                (task.depends_on, len(task.waiting_for)),
            )
            for task in self.plain.tasks
            if task.state != "PURGED"
        ]

    @invariant()
    def sessions_agree(self) -> None:
        page = self.log.ask(list_sessions={"page_size": 1_000}).list_sessions
        found = sorted((s.session_id, s.health, s.claimed_tasks) for s in page.sessions)
        assert found == sorted(
            (
                session.session_id,
                session_pb2.Health.Value(f"HEALTH_{session.health}"),
                len(self.plain.held(session)),
            )
            for session in self.plain.sessions
        )
        assert all(
            session.claimed_tasks <= session.max_concurrent_tasks for session in page.sessions
        )

    @invariant()
    def waits_agree(self) -> None:
        waiting = {waiter.waiter_id for waiter in self.plain.waiters}
        for waiter_id in range(1, self.plain.last_waiter + 1):
            assert self.log.waited(waiter_id).waiting == (waiter_id in waiting)

    @invariant()
    def counts_agree(self) -> None:
        stats = self.log.stats()
        states = [task.state for task in self.plain.tasks]
        for state in (
            "pending",
            "scheduled",
            "claimed",
            "completed",
            "failed",
            "cancelled",
            "blocked",
        ):
            assert getattr(stats, state) == states.count(state.upper())
        assert stats.claims_total == self.plain.last_token
        assert stats.failed_attempts_total == self.plain.failed_attempts
        assert stats.dead_letters_total == self.plain.dead_letters
        assert stats.purged_total == self.plain.purged
        assert stats.waiting_claims == len(self.plain.waiters)

    def teardown(self) -> None:
        twin = StateMachine()
        for index, (kind, data) in enumerate(self.log.entries, start=1):
            twin.apply(index, kind, data)
        assert twin.state_hash() == self.log.machine.state_hash()


QueueComparison.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestQueueComparison = QueueComparison.TestCase
