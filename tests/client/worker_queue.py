"""A scripted queue of one peer, for tests of the worker."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import grpc
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from tests.client.fake_peer import Context, FakePeer, refuse


class Queue:
    """Sessions and tasks as one peer would serve them.

    A task is an id, "t1", or an id and a type, "t1:essay". Its token grows with each claim, from 7.
    """

    def __init__(self, peer: FakePeer, *tasks: str, claim_s: float = 60.0) -> None:
        self.peer = peer
        self.waiting = deque(tasks)
        self.claim_s = claim_s
        self.incarnation = 0
        self.session_failed = False
        self.stale: set[str] = set()
        self.tokens: dict[str, int] = {}
        self.held: set[str] = set()
        self.checkpoints: dict[str, bytes] = {}
        self.failures: list[task_pb2.FailTaskRequest] = []
        self.payloads: dict[str, bytes] = {}
        self.deadline_s: float | None = None
        self.done: list[str] = []
        self.change = asyncio.Event()
        for name in (
            "RegisterSession",
            "Heartbeat",
            "DeregisterSession",
            "ClaimTasks",
            "ExtendClaim",
            "CompleteTask",
            "FailTask",
            "ReleaseTask",
        ):
            peer.answers[name] = getattr(self, name)

    def session(self) -> session_pb2.Session:
        return session_pb2.Session(
            session_id="s1", incarnation=self.incarnation, claimed_tasks=len(self.held)
        )

    def note(self, line: str) -> None:
        self.done.append(line)
        self.change.set()
        self.change = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await self.change.wait()

    async def RegisterSession(
        self, request: session_pb2.RegisterSessionRequest, context: Context
    ) -> session_pb2.RegisterSessionResponse:
        if request.name == "taken":
            await refuse(context, grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")
        self.incarnation += 1
        self.session_failed = False
        self.held.clear()
        self.note(f"registered {request.name} {self.incarnation}")
        return session_pb2.RegisterSessionResponse(session=self.session(), heartbeat_interval_ms=50)

    async def Heartbeat(
        self, request: session_pb2.HeartbeatRequest, context: Context
    ) -> session_pb2.HeartbeatResponse:
        if self.session_failed:
            await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "SESSION_FAILED")
        self.note(f"heartbeat {request.incarnation}")
        return session_pb2.HeartbeatResponse(session=self.session())

    async def DeregisterSession(
        self, request: session_pb2.DeregisterSessionRequest, context: Context
    ) -> session_pb2.DeregisterSessionResponse:
        self.note(f"deregistered {request.incarnation}")
        return session_pb2.DeregisterSessionResponse()

    async def ClaimTasks(
        self, request: task_pb2.ClaimTasksRequest, context: Context
    ) -> task_pb2.ClaimTasksResponse:
        while not self.waiting:
            await self.change.wait()
        response = task_pb2.ClaimTasksResponse()
        while self.waiting and len(response.tasks) < request.max_tasks:
            task_id, _, task_type = self.waiting.popleft().partition(":")
            self.held.add(task_id)
            self.tokens[task_id] = self.tokens.get(task_id, 6) + 1
            task = response.tasks.add(
                task_id=task_id,
                task_type=task_type or "grade",
                claim_token=self.tokens[task_id],
                claimed_by=request.session_id,
                retry_count=self.tokens[task_id] - 7,
                checkpoint=self.checkpoints.get(task_id, b""),
                payload=self.payloads.get(task_id, b""),
            )
            if self.deadline_s is not None:
                task.deadline_time.FromMilliseconds(1_000 + round(self.deadline_s * 1000))
            task.update_time.FromMilliseconds(1_000)
            task.claim_expire_time.FromMilliseconds(1_000 + round(self.claim_s * 1000))
        return response

    async def refuse_stale(self, task_id: str, context: Context) -> None:
        if task_id in self.stale:
            await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "STALE_CLAIM")

    async def ExtendClaim(
        self, request: task_pb2.ExtendClaimRequest, context: Context
    ) -> task_pb2.ExtendClaimResponse:
        await self.refuse_stale(request.task_id, context)
        if request.checkpoint:
            self.checkpoints[request.task_id] = request.checkpoint
        self.note(f"extended {request.task_id} {request.progress:g}")
        return task_pb2.ExtendClaimResponse()

    async def CompleteTask(
        self, request: task_pb2.CompleteTaskRequest, context: Context
    ) -> task_pb2.CompleteTaskResponse:
        await self.refuse_stale(request.task_id, context)
        self.held.discard(request.task_id)
        self.note(f"completed {request.task_id} {request.claim_token} {request.result.decode()}")
        return task_pb2.CompleteTaskResponse()

    async def FailTask(
        self, request: task_pb2.FailTaskRequest, context: Context
    ) -> task_pb2.FailTaskResponse:
        self.held.discard(request.task_id)
        self.failures.append(request)
        self.note(f"failed {request.task_id} {request.error} {request.permanent}")
        return task_pb2.FailTaskResponse()

    async def ReleaseTask(
        self, request: task_pb2.ReleaseTaskRequest, context: Context
    ) -> task_pb2.ReleaseTaskResponse:
        self.held.discard(request.task_id)
        self.note(f"released {request.task_id} {request.claim_token}")
        return task_pb2.ReleaseTaskResponse()

    @property
    def events(self) -> list[str]:
        """What happened, but for heartbeats, which come when they come."""
        return [line for line in self.done if not line.startswith("heartbeat")]

    def lines(self, word: str) -> list[str]:
        return [line for line in self.done if line.startswith(word)]
