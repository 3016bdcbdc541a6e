"""The clients of a run: registers, settings, a queue, and heartbeats for all of their sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from gaia.cluster.v1 import cluster_pb2
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2
from google.protobuf import duration_pb2

from tests.chaos.caller import SETTING, Caller
from tests.chaos.history import Call, Outcome
from tests.chaos.models import MAX_OPERATIONS

HEARTBEAT_S = 0.8
MakeCaller = Callable[[str], Caller]


class Worker:
    """What all clients share: a way to make callers, and the end."""

    def __init__(self, name: str, make_caller: MakeCaller, stopping: asyncio.Event) -> None:
        self.name = name
        self.make_caller = make_caller
        self.caller = make_caller(name)
        self.stopping = stopping
        self.draw = self.caller.draw

    async def pause(self, least_s: float, most_s: float) -> None:
        """Waits a random while, not beyond the end of the run."""
        try:
            async with asyncio.timeout(self.draw.uniform(least_s, most_s)):
                await self.stopping.wait()
        except TimeoutError:
            pass

    async def run(self) -> None:
        """Until the end of the run."""
        raise TypeError("a worker says what it does")


class Session:
    """A session under one name that registers again where it has failed."""

    def __init__(self, caller: Caller, name: str, capacity: int, stopping: asyncio.Event) -> None:
        self.session_id = ""
        self.incarnation = 0
        self._caller = caller
        self._name = name
        self._capacity = capacity
        self._stopping = stopping

    async def open(self) -> None:
        """Registers; a name that is still live is waited for."""
        while not self._stopping.is_set():
            request = session_pb2.RegisterSessionRequest(
                name=self._name,
                specialty="general",
                max_concurrent_tasks=self._capacity,
                request_id=self._caller.new_request_id(),
            )
            call = await self._caller.insist(
                "register_session", self._name, request, stopping=self._stopping
            )
            if call.is_ok:
                self.session_id = call.answer["session_id"]
                self.incarnation = call.answer["incarnation"]
                return
            await asyncio.sleep(0.3)

    async def beat(self) -> None:
        """Heartbeats until the end; registers again when told to."""
        while not self._stopping.is_set():
            await asyncio.sleep(HEARTBEAT_S * self._caller.draw.uniform(0.7, 1.0))
            request = session_pb2.HeartbeatRequest(
                session_id=self.session_id, incarnation=self.incarnation
            )
            call = await self._caller.call("heartbeat", self._name, request)
            if call.outcome is Outcome.REFUSED:
                await self.open()


class TaskRegisters(Worker):
    """Several clients that write and read the checkpoint of one claimed task after another."""

    clients = 4
    held_s = (6.0, 12.0)

    async def run(self) -> None:
        session = Session(self.caller, self.name, 10, self.stopping)
        await session.open()
        async with asyncio.TaskGroup() as group:
            group.create_task(session.beat())
            number = 0
            while not self.stopping.is_set():
                number += 1
                await self._one_register(session, f"{self.name}-{number}")

    async def _one_register(self, session: Session, task_type: str) -> None:
        enqueue = task_pb2.EnqueueTaskRequest(
            task_type=task_type,
            payload=task_type.encode(),
            idempotency_key=task_type,
            request_id=self.caller.new_request_id(),
        )
        made = await self.caller.insist(
            "enqueue_task", task_type, enqueue, {"payload": task_type}, stopping=self.stopping
        )
        claim = task_pb2.ClaimTasksRequest(
            session_id=session.session_id,
            max_tasks=1,
            task_types=[task_type],
            request_id=self.caller.new_request_id(),
        )
        claimed = await self.caller.insist("claim_tasks", task_type, claim, stopping=self.stopping)
        if not made.is_ok or not claimed.is_ok or not claimed.answer["tasks"]:
            await self.pause(0.2, 0.4)
            return
        [[task_id, token]] = claimed.answer["tasks"]
        budget = [MAX_OPERATIONS - 20]
        until_s = asyncio.get_running_loop().time() + self.draw.uniform(*self.held_s)
        async with asyncio.TaskGroup() as group:
            for number in range(self.clients):
                client = self.make_caller(f"{task_type}-c{number}")
                group.create_task(
                    self._client(client, task_id, token, session.session_id, budget, until_s)
                )

    async def _client(
        self,
        client: Caller,
        task_id: str,
        token: int,
        session_id: str,
        budget: list[int],
        until_s: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        number = 0
        while budget[0] > 0 and loop.time() < until_s and not self.stopping.is_set():
            budget[0] -= 1
            number += 1
            if client.draw.random() < 0.5:
                await client.call("get_task", task_id, task_pb2.GetTaskRequest(task_id=task_id))
            else:
                value = f"{client.base}-{number}"
                request = task_pb2.ExtendClaimRequest(
                    task_id=task_id,
                    claim_token=token,
                    session_id=session_id,
                    checkpoint=value.encode(),
                )
                argument = {"checkpoint": value, "claim_token": token}
                await client.call("extend_claim", task_id, request, argument)
            await asyncio.sleep(client.draw.uniform(0.05, 0.2))
        if client.base.endswith("-c0"):
            done = task_pb2.CompleteTaskRequest(
                task_id=task_id, claim_token=token, session_id=session_id, result=b"done"
            )
            told = {"result": "done", "claim_token": token}
            await client.call("complete_task", task_id, done, told)


class SettingClients(Worker):
    """One client that reads, sets, and compares and sets the one register of the settings."""

    async def run(self) -> None:
        number = 0
        version = 0
        while not self.stopping.is_set():
            number += 1
            chance = self.draw.random()
            if chance < 0.4:
                call = await self.caller.call(
                    "get_settings", SETTING, cluster_pb2.GetSettingsRequest()
                )
            else:
                # Unique in the run: the client's number, then its own count, in milliseconds.
                value = (int(self.name[-1]) + 1) * 1_000_000 + number
                change = cluster_pb2.SettingChange(name=SETTING, value=f"{value}ms")
                request = cluster_pb2.UpdateSettingsRequest(
                    changes=[change], request_id=self.caller.new_request_id()
                )
                argument: dict[str, Any] = {"value": value}
                if chance < 0.85:
                    request.expected_version = argument["expected"] = version
                call = await self.caller.call("update_settings", SETTING, request, argument)
            if call.is_ok:
                version = call.answer["version"]
            elif call.outcome is Outcome.REFUSED:
                version = max(0, version + self.draw.choice((0, 1)))
            await self.pause(0.3, 1.0)


class Producer(Worker):
    """Enqueues jobs with unique payloads; some calls go twice, some answers are asked for again."""

    async def run(self) -> None:
        number = 0
        while not self.stopping.is_set():
            number += 1
            payload = f"{self.name}-{number}"
            request = task_pb2.EnqueueTaskRequest(
                task_type="job",
                payload=payload.encode(),
                priority=self.draw.randint(0, 3),
                request_id=self.caller.new_request_id(),
            )
            if self.draw.random() < 0.3:
                request.idempotency_key = f"key-{payload}"
            argument = {"payload": payload}
            if self.draw.random() < 0.2:
                await asyncio.gather(
                    *(self.caller.call("enqueue_task", payload, request, argument) for _ in "ab")
                )
            else:
                call = await self.caller.call("enqueue_task", payload, request, argument)
                if call.outcome is Outcome.UNKNOWN and self.draw.random() < 0.5:
                    await self.caller.call("enqueue_task", payload, request, argument)
            await self.pause(0.1, 0.35)


class Consumer(Worker):
    """Claims jobs and does with them all that one can do, also too late and twice."""

    async def run(self) -> None:
        session = Session(self.caller, self.name, 4, self.stopping)
        await session.open()
        async with asyncio.TaskGroup() as group:
            group.create_task(session.beat())
            while not self.stopping.is_set():
                await self._claim_and_work(session, group)
                await self.pause(0.1, 0.3)

    async def _claim_and_work(self, session: Session, group: asyncio.TaskGroup) -> None:
        request = task_pb2.ClaimTasksRequest(
            session_id=session.session_id,
            max_tasks=self.draw.randint(1, 2),
            task_types=["job"],
            request_id=self.caller.new_request_id(),
        )
        if self.draw.random() < 0.3:
            request.wait.CopyFrom(duration_pb2.Duration(nanos=500_000_000))
        argument = {"session_id": session.session_id, "waits": request.HasField("wait")}
        if self.draw.random() < 0.15:
            calls = await asyncio.gather(
                *(self.caller.call("claim_tasks", "job", request, argument) for _ in "ab")
            )
        else:
            calls = [await self.caller.call("claim_tasks", "job", request, argument)]
            if calls[0].outcome is Outcome.UNKNOWN and self.draw.random() < 0.7:
                calls.append(await self.caller.call("claim_tasks", "job", request, argument))
        claimed = next((call for call in calls if call.is_ok and call.answer["tasks"]), None)
        for task_id, token in claimed.answer["tasks"] if claimed is not None else []:
            await self._work(session, task_id, token, group)

    async def _work(
        self, session: Session, task_id: str, token: int, group: asyncio.TaskGroup
    ) -> None:
        chance = self.draw.random()
        identity: dict[str, Any] = {
            "task_id": task_id,
            "claim_token": token,
            "session_id": session.session_id,
        }
        told = {"claim_token": token}
        if chance < 0.2:
            value = f"{self.name}-{task_id}-{token}"
            extend = task_pb2.ExtendClaimRequest(**identity, checkpoint=value.encode())
            await self.caller.call("extend_claim", task_id, extend, {**told, "checkpoint": value})
        if chance < 0.65:
            await self._complete(identity, f"{self.name}-{token}")
        elif chance < 0.75:
            error = f"{self.name}-{token}"
            fail = task_pb2.FailTaskRequest(**identity, error=error)
            await self.caller.call("fail_task", task_id, fail, {**told, "error": error})
        elif chance < 0.85:
            release = task_pb2.ReleaseTaskRequest(**identity)
            await self.caller.call("release_task", task_id, release, told)
        elif chance < 0.95:
            group.create_task(self._complete_late(identity, f"{self.name}-{token}"))
        # The rest is forgotten, and its claim expires.

    async def _complete(self, identity: dict[str, Any], result: str) -> Call:
        request = task_pb2.CompleteTaskRequest(**identity, result=result.encode())
        argument = {"result": result, "claim_token": identity["claim_token"]}
        call = await self.caller.call("complete_task", identity["task_id"], request, argument)
        if call.outcome is Outcome.UNKNOWN:
            call = await self.caller.call("complete_task", identity["task_id"], request, argument)
        return call

    async def _complete_late(self, identity: dict[str, Any], result: str) -> None:
        """By now the claim may have expired, and somebody else may hold the task."""
        await self.pause(2.0, 5.0)
        await self._complete(identity, result)
