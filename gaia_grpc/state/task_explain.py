"""Why each session would or would not get a task, and what the task itself waits for.

Asked of one session, the queue's own index tells what it would get next, so an explanation costs as
much as a claim, however many tasks wait; only the sessions of the page are explained.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from gaia.command.v1 import query_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.state import page_tokens
from gaia_grpc.state.affinity import NONE, affinity_score
from gaia_grpc.state.session_record import HEALTHY, Session
from gaia_grpc.state.sessions import SessionTable, explain
from gaia_grpc.state.task_record import (
    BLOCKED,
    CLAIMED,
    COMPLETED,
    OPEN_STATES,
    PENDING,
    SCHEDULED,
    Task,
    state_name,
    task_id_of,
)
from gaia_grpc.state.task_store import TaskStore

NOT_PENDING = task_pb2.ASSIGNMENT_OBSTACLE_TASK_NOT_PENDING
UNHEALTHY = task_pb2.ASSIGNMENT_OBSTACLE_UNHEALTHY
NO_CAPACITY = task_pb2.ASSIGNMENT_OBSTACLE_NO_CAPACITY
NO_AFFINITY = task_pb2.ASSIGNMENT_OBSTACLE_NO_AFFINITY
BEHIND = task_pb2.ASSIGNMENT_OBSTACLE_BEHIND_ANOTHER

NEEDS: Mapping[int, str] = {
    UNHEALTHY: "a heartbeat in time",
    NO_CAPACITY: "to end one of its tasks",
    NO_AFFINITY: "include_unmatched in its claim",
}

MOST_NAMED = 8
"""Dependencies that an explanation names."""


class TaskExplainer:
    """Answers `ExplainAssignmentRequest`."""

    def __init__(self, sessions: SessionTable, store: TaskStore) -> None:
        self._sessions = sessions
        self._store = store

    def explain(
        self, body: task_pb2.ExplainAssignmentRequest, now_ms: int
    ) -> query_pb2.QueryResult:
        """The sessions that are nearest to the task, each with its reasons."""
        task = self._store.existing(body.task_id)
        size = page_tokens.page_size(body.page_size)
        epoch = self._store.age.epoch_at(now_ms)
        ranked = []
        total = would = 0
        ahead: dict[str, Task | None] = {}
        for session in self._sessions:
            total += 1
            obstacles = self._obstacles(session, task, ahead)
            would += not obstacles
            score = affinity_score(session.specialty, task.affinity)
            order = (len(obstacles), -score, -session.free_capacity, session.number)
            ranked.append((order, session, obstacles))
        best = heapq.nsmallest(size, ranked, key=lambda entry: entry[0])
        answer = task_pb2.ExplainAssignmentResponse(
            task=self._store.message(task),
            explanations=[
                self._explained(session, task, obstacles, ahead, epoch)
                for _, session, obstacles in best
            ],
            explanation=self._standing(task, now_ms, (would, total), epoch),
            total_sessions=total,
            eligible_sessions=would,
        )
        return query_pb2.QueryResult(explain_assignment=answer)

    def _obstacles(
        self, session: Session, task: Task, ahead: dict[str, Task | None]
    ) -> tuple[task_pb2.AssignmentObstacle.ValueType, ...]:
        """What is in the way; `ahead` keeps what sessions of a specialty get next."""
        found: list[task_pb2.AssignmentObstacle.ValueType] = []
        if task.state != PENDING:
            found.append(NOT_PENDING)
        if session.health != HEALTHY:
            found.append(UNHEALTHY)
        if not session.free_capacity:
            found.append(NO_CAPACITY)
        if affinity_score(session.specialty, task.affinity) == NONE:
            found.append(NO_AFFINITY)
        elif task.state == PENDING:
            if session.specialty not in ahead:
                ahead[session.specialty] = self._store.index.best(
                    session.specialty, (), include_unmatched=False
                )
            if ahead[session.specialty] is not task:
                found.append(BEHIND)
        return tuple(found)

    def _explained(
        self,
        session: Session,
        task: Task,
        obstacles: tuple[task_pb2.AssignmentObstacle.ValueType, ...],
        ahead: Mapping[str, Task | None],
        epoch: int,
    ) -> task_pb2.AssignmentExplanation:
        score = affinity_score(session.specialty, task.affinity)
        first = ahead.get(session.specialty) if BEHIND in obstacles else None
        parts = [explain(session, task.affinity, score)]
        if task.state == CLAIMED and task.session_id == session.session_id:
            parts.append("holds the task")
        elif NOT_PENDING in obstacles:
            parts.append(f"the task is {state_name(task.state).lower()}")
        elif first is not None:
            why = _why_first(session, first, task, epoch)
            parts.append(f"{first.task_id} goes first: {why}")
        needs = [NEEDS[obstacle] for obstacle in obstacles if obstacle in NEEDS]
        if not obstacles:
            parts.append("would get it now")
        elif needs:
            parts.append(f"needs {', '.join(needs)}")
        return task_pb2.AssignmentExplanation(
            session_id=session.session_id,
            session_name=session.name,
            affinity_score=score,
            eligible=not obstacles,
            explanation="; ".join(parts),
            obstacles=obstacles,
            ahead_task_id="" if first is None else first.task_id,
            free_capacity=session.free_capacity,
        )

    def _standing(self, task: Task, now_ms: int, sessions: tuple[int, int], epoch: int) -> str:
        """Where the task stands and what it needs; `sessions` that would get it, of all."""
        text = self._standing_in_state(task, now_ms, sessions, epoch)
        deadline_ms = self._store.extras.deadline_of(task.number)
        if deadline_ms is not None and task.state in OPEN_STATES:
            left_s = max(deadline_ms - now_ms, 0) / 1000
            text = f"{text}; its deadline passes in {left_s:.1f} s"
        return text

    def _standing_in_state(
        self, task: Task, now_ms: int, sessions: tuple[int, int], epoch: int
    ) -> str:
        if task.state == PENDING:
            would, total = sessions
            aged = f", priority {_aged(task, epoch)}" if epoch > task.epoch else ""
            return f"pending{aged}; {would or 'none'} of {total} sessions would get it now"
        if task.state == SCHEDULED:
            return _scheduled(task, now_ms)
        if task.state == BLOCKED:
            return self._blocked(task)
        if task.state == CLAIMED:
            left_s = max(task.claim_expire_ms - now_ms, 0) / 1000
            return (
                f"claimed by {task.session_id} under the claim {task.claim_token}; "
                f"the claim ends in {left_s:.1f} s unless it is extended"
            )
        if task.state == COMPLETED:
            return "completed; nobody will get it"
        reason = f" ({task.last_error})" if task.last_error else ""
        return f"{state_name(task.state).lower()}{reason}; needs RequeueTask"

    def _blocked(self, task: Task) -> str:
        """Which tasks it waits for, and where they stand."""
        extra = self._store.extras.get(task.number)
        waiting_for = extra.waiting_for if extra is not None else ()
        named = []
        for number in waiting_for[:MOST_NAMED]:
            other = self._store.numbered(number)
            standing = state_name(other.state).lower() if other is not None else "not retained"
            named.append(f"{task_id_of(number)} ({standing})")
        more = len(waiting_for) - len(named)
        if more:
            named.append(f"{more} more")
        return f"blocked; waits for {', '.join(named)} to be completed"


def _why_first(session: Session, first: Task, task: Task, epoch: int) -> str:
    """Priority, then affinity, then age: the first that tells the two apart."""
    if first.priority - first.epoch != task.priority - task.epoch:
        return f"priority {_aged(first, epoch)} over {_aged(task, epoch)}"
    scores = [affinity_score(session.specialty, each.affinity) for each in (first, task)]
    if scores[0] != scores[1]:
        return f"affinity score {scores[0]} over {scores[1]}"
    return "older"


def _aged(task: Task, epoch: int) -> str:
    """The priority with what its age adds."""
    levels = epoch - task.epoch
    if levels <= 0:
        return str(task.priority)
    return f"{task.priority + levels} ({task.priority} and {levels} for its age)"


def _scheduled(task: Task, now_ms: int) -> str:
    left_s = max(task.available_ms - now_ms, 0) / 1000
    why = f"retry {task.retry_count} of {task.max_retries}" if task.retry_count else "delayed"
    return f"scheduled; {why}; may be claimed in {left_s:.1f} s"
