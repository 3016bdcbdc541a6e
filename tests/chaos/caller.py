"""Calls through raw stubs, recorded: what was asked, where, when, and what is known of the outcome.

No retry happens here, and none of the SDK's. A client that does not know how its call ended goes on
under a new name, as the check of a history wants it; whoever wants to repeat a call does so with
the same request_id, as a call of its own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any

import grpc
from gaia.cluster.v1.cluster_pb2_grpc import ClusterServiceStub
from gaia.metrics.v1.metrics_pb2_grpc import MetricsServiceStub
from gaia.session.v1.session_pb2_grpc import SessionServiceStub
from gaia.task.v1.task_pb2_grpc import TaskServiceStub

from gaia_grpc.client.rpc_errors import to_gaia_error
from gaia_grpc.errors import (
    DomainError,
    NotLeaderError,
    OverloadedError,
    ResourceExhaustedError,
    UnavailableError,
)
from tests.chaos.history import Call, History, Outcome

CALL_TIMEOUT_S = 2.5
OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 250),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)
SETTING = "lock.lease"
"""A setting that changes nothing else here: its value is the settings' register."""


def _task_answer(response: Any) -> dict[str, Any]:
    task = response.task
    return {
        "task_id": task.task_id,
        "state": int(task.state),
        "claim_token": task.claim_token,
        "checkpoint": task.checkpoint.decode(),
        "result": task.result.decode() or None,
    }


def _enqueue_answer(response: Any) -> dict[str, Any]:
    task = response.task
    return {"task_id": task.task_id, "existing": response.existing}


def _claim_answer(response: Any) -> dict[str, Any]:
    return {"tasks": [[task.task_id, task.claim_token] for task in response.tasks]}


def _settings_answer(response: Any) -> dict[str, Any]:
    found = response.settings
    value = next(setting.value for setting in found.settings if setting.name == SETTING)
    return {"version": found.version, "value": milliseconds(value)}


def milliseconds(duration: str) -> int:
    """`1.5s`, `30s` and `1500ms` as a number: a value may be shown in another unit than sent."""
    number = duration.rstrip("dhms")
    units = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
    return round(float(number) * units[duration[len(number) :]])


def _session_answer(response: Any) -> dict[str, Any]:
    return {
        "session_id": response.session.session_id,
        "incarnation": response.session.incarnation,
    }


def _publish_answer(response: Any) -> dict[str, Any]:
    return {
        "status": [int(result.status) for result in response.results],
        "accepted": [result.accepted_count for result in response.results],
        "late": [result.late_count for result in response.results],
    }


Answer = Callable[[Any], dict[str, Any]]
METHODS: Mapping[str, tuple[type[Any], str, Answer]] = {
    "enqueue_task": (TaskServiceStub, "EnqueueTask", _enqueue_answer),
    "claim_tasks": (TaskServiceStub, "ClaimTasks", _claim_answer),
    "extend_claim": (TaskServiceStub, "ExtendClaim", _task_answer),
    "complete_task": (TaskServiceStub, "CompleteTask", _task_answer),
    "fail_task": (TaskServiceStub, "FailTask", _task_answer),
    "release_task": (TaskServiceStub, "ReleaseTask", _task_answer),
    "get_task": (TaskServiceStub, "GetTask", _task_answer),
    "register_session": (SessionServiceStub, "RegisterSession", _session_answer),
    "heartbeat": (SessionServiceStub, "Heartbeat", _session_answer),
    "get_settings": (ClusterServiceStub, "GetSettings", _settings_answer),
    "update_settings": (ClusterServiceStub, "UpdateSettings", _settings_answer),
    "publish_metrics": (MetricsServiceStub, "PublishMetrics", _publish_answer),
}


class Channels:
    """One channel a peer, shared by the clients of one kind."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self.by_peer = {
            node_id: grpc.aio.insecure_channel(address, options=OPTIONS)
            for node_id, address in addresses.items()
        }
        self._methods: dict[tuple[str, str], Any] = {}

    def method(self, peer: str, kind: str) -> Any:
        """The callable of one RPC at one peer."""
        found = self._methods.get((peer, kind))
        if found is None:
            stub, name, _ = METHODS[kind]
            found = self._methods[(peer, kind)] = getattr(stub(self.by_peer[peer]), name)
        return found

    async def close(self) -> None:
        """Ends the connections."""
        for channel in self.by_peer.values():
            await channel.close()


class Caller:
    """One client. `name` changes after each call whose outcome is unknown."""

    def __init__(
        self, name: str, channels: Channels, history: History, draw: random.Random
    ) -> None:
        self.base = name
        self.draw = draw
        self._channels = channels
        self._history = history
        self._unknowns = 0
        self._requests = 0

    @property
    def name(self) -> str:
        """The name under which calls are recorded now."""
        return f"{self.base}.{self._unknowns}"

    def new_request_id(self) -> str:
        """Unique in the run."""
        self._requests += 1
        return f"{self.base}-{self._requests}"

    def any_peer(self) -> str:
        """A random peer, whether it lives or not."""
        return self.draw.choice(sorted(self._channels.by_peer))

    async def call(
        self,
        kind: str,
        key: str,
        request: Any,
        argument: Mapping[str, Any] | None = None,
        *,
        peer: str | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Call:
        """One attempt at one peer; never raises for what the cluster answers."""
        loop = asyncio.get_running_loop()
        peer = peer or self.any_peer()
        call = self._history.add(
            Call(
                self.name,
                kind,
                key,
                peer,
                loop.time(),
                dict(argument or {}),
                getattr(request, "request_id", ""),
            )
        )
        method = self._channels.method(peer, kind)
        try:
            response = await method(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            call.outcome, call.reason = judge(error)
        else:
            call.outcome = Outcome.OK
            call.answer = METHODS[kind][2](response)
            call.term = getattr(response, "term", 0)
            call.index = getattr(response, "applied_index", 0)
        call.returned_at = loop.time()
        if call.outcome is Outcome.UNKNOWN:
            self._unknowns += 1
        return call

    async def insist(
        self,
        kind: str,
        key: str,
        request: Any,
        argument: Mapping[str, Any] | None = None,
        *,
        stopping: asyncio.Event | None = None,
    ) -> Call:
        """Repeats the same request at other peers until it is answered or refused."""
        while True:
            call = await self.call(kind, key, request, argument)
            if call.outcome in (Outcome.OK, Outcome.REFUSED):
                return call
            if stopping is not None and stopping.is_set():
                return call
            await asyncio.sleep(self.draw.uniform(0.05, 0.2))


def judge(error: grpc.aio.AioRpcError) -> tuple[Outcome, str]:
    """What the contracts say that an error means for the outcome of the call."""
    known = to_gaia_error(error)
    reason = known.instance_reason
    match known:
        case OverloadedError() | NotLeaderError() | UnavailableError():
            return Outcome.FAILED, reason
        case ResourceExhaustedError():
            # Replicated limits are refusals; a full disk is told before anything was proposed.
            return Outcome.FAILED, reason
        case DomainError():
            return Outcome.REFUSED, reason
        case _:
            return Outcome.UNKNOWN, reason
