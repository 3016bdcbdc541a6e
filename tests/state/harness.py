"""A state machine with a log of its own, for tests: commands by name, log time by hand."""

from __future__ import annotations

from typing import Any

from gaia.cluster.v1 import cluster_pb2
from gaia.command.v1 import command_pb2, query_pb2
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.raft.types import EntryKind
from gaia_grpc.state.feature_levels import FEATURE_LEVEL
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.stamp import stamp
from gaia_grpc.state.tasks import TaskTable

START_MS = 1_700_000_000_000


def command(**fields: Any) -> command_pb2.Command:
    """A Command by its fields, with nested messages as dictionaries."""
    return command_pb2.Command(**fields)


class Log:
    """Applies commands at `now_ms`, as a leader would, and keeps them for another machine."""

    def __init__(
        self, *settings: tuple[str, str], found: bool = True, level: int = FEATURE_LEVEL
    ) -> None:
        self.machine = StateMachine()
        self.entries: list[tuple[int, bytes]] = []
        self.now_ms = START_MS
        if found:
            body = command_pb2.FoundCluster(
                cluster_id="c-test",
                settings=[
                    cluster_pb2.SettingChange(name=name, value=value) for name, value in settings
                ],
                feature_level=level,
            )
            result = self.apply(command_pb2.Command(found_cluster=body))
            assert result.WhichOneof("body") == "settings", result

    def apply(self, command: command_pb2.Command) -> command_pb2.CommandResult:
        """Stamps and applies one command."""
        data = stamp(command.SerializeToString(), self.now_ms, self.now_ms)
        return command_pb2.CommandResult.FromString(self.apply_raw(EntryKind.COMMAND, data))

    def apply_raw(self, kind: int, data: bytes) -> bytes:
        """Applies an entry as it is."""
        result = self.machine.apply(self.machine.applied_index + 1, kind, data)
        self.entries.append((kind, data))
        return result

    def do(self, **command: Any) -> command_pb2.CommandResult:
        """Applies a Command by its fields; the result must be no refusal."""
        result = self.apply(command_pb2.Command(**command))
        assert result.WhichOneof("body") != "refusal", result.refusal
        return result

    def refuse(self, **command: Any) -> command_pb2.Refusal:
        """Applies a Command by its fields; returns the refusal that it must get."""
        result = self.apply(command_pb2.Command(**command))
        assert result.WhichOneof("body") == "refusal", result
        return result.refusal

    def apply_fields(self, **fields: Any) -> command_pb2.CommandResult:
        """Applies a Command by its fields, whatever comes of it."""
        return self.apply(command(**fields))

    def advance(self, milliseconds: int) -> None:
        """Lets log time pass as the driver does: an AdvanceTime for whatever is due on the way."""
        end_ms = self.now_ms + milliseconds
        while True:
            due_ms = self.machine.next_due_ms()
            if due_ms is None or due_ms > end_ms:
                break
            self.now_ms = max(self.now_ms, due_ms)
            self.do(advance_time={})
        self.now_ms = end_ms

    def ask(self, **query: Any) -> query_pb2.QueryResult:
        """Answers a Query by its fields; no refusal."""
        result = self.query(**query)
        assert result.WhichOneof("body") != "refusal", result.refusal
        return result

    def query(self, **query: Any) -> query_pb2.QueryResult:
        """Answers a Query by its fields."""
        data = query_pb2.Query(**query).SerializeToString()
        return query_pb2.QueryResult.FromString(self.machine.query(data, self.now_ms))

    def tasks(self) -> TaskTable:
        """The table of the tasks, for tests of what no query shows."""
        return next(table for table in self.machine._tables if isinstance(table, TaskTable))

    # --- shorthand

    def register(self, name: str, specialty: str = "general", capacity: int = 1) -> str:
        """Registers a session; returns its id."""
        body = command_pb2.RegisterSession(
            name=name, specialty=specialty, max_concurrent_tasks=capacity
        )
        return self.do(register_session=body).session.session.session_id

    def beat(self, *session_ids: str) -> list[command_pb2.HeartbeatOutcome]:
        """One heartbeat of each session."""
        heartbeats = [{"session_id": session_id} for session_id in session_ids]
        return list(self.do(record_heartbeats={"heartbeats": heartbeats}).heartbeats.outcomes)

    def session(self, session_id: str) -> session_pb2.Session:
        """The session as it is now."""
        return self.ask(get_session={"session_id": session_id}).get_session.session

    def enqueue(self, task_type: str = "grade", **spec: Any) -> str:
        """Enqueues one task; returns its id."""
        spec.setdefault("affinity", "general")
        tasks = [command_pb2.TaskSpec(task_type=task_type, **spec)]
        return self.do(enqueue_tasks={"tasks": tasks}).tasks.tasks[0].task_id

    def claim(self, session_id: str, most: int = 1, **fields: Any) -> list[task_pb2.Task]:
        """Claims at once."""
        return list(self.claim_result(session_id, most, **fields).tasks)

    def claim_result(
        self, session_id: str, most: int = 1, **fields: Any
    ) -> command_pb2.ClaimResult:
        """Claims, with all fields of the result."""
        body = command_pb2.ClaimTasks(session_id=session_id, max_tasks=most, **fields)
        return self.do(claim_tasks=body).claim

    def wait(self, session_id: str, wait_ms: int = 30_000, most: int = 1, **fields: Any) -> int:
        """A claim that must wait; returns the waiter's id."""
        result = self.claim_result(session_id, most, wait_ms=wait_ms, **fields)
        assert result.waiter_id, result
        return result.waiter_id

    def waited(self, waiter_id: int) -> query_pb2.ClaimWaitResult:
        """What became of a wait."""
        return self.ask(claim_wait={"waiter_id": waiter_id}).claim_wait

    def complete(
        self, task: task_pb2.Task, session_id: str = "", result: bytes = b""
    ) -> command_pb2.CompletionResult:
        """Completes one task; returns the outcome."""
        completion = task_pb2.Completion(
            task_id=task.task_id, claim_token=task.claim_token, result=result
        )
        body = command_pb2.CompleteTasks(
            session_id=session_id or task.claimed_by, completions=[completion]
        )
        return self.do(complete_tasks=body).completions.outcomes[0]

    def held(self, task: task_pb2.Task, **fields: Any) -> dict[str, Any]:
        """The three fields that name a claim."""
        return {
            "task_id": task.task_id,
            "claim_token": task.claim_token,
            "session_id": task.claimed_by,
            **fields,
        }

    def fail(self, task: task_pb2.Task, error: str = "boom", **fields: Any) -> task_pb2.Task:
        """Fails a claimed task."""
        return self.do(fail_task=self.held(task, error=error, **fields)).tasks.tasks[0]

    def task(self, task_id: str) -> task_pb2.Task:
        """The task as it is now."""
        return self.ask(get_task={"task_id": task_id}).get_task.task

    def stats(self) -> task_pb2.GetQueueStatsResponse:
        """Counts."""
        return self.ask(get_queue_stats={}).get_queue_stats
