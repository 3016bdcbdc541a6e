"""WatchTasks, WatchSessions and ExplainAssignment as they are served."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from gaia.command.v1 import command_pb2
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2, task_pb2_grpc

from gaia_grpc.raft.types import EntryKind
from gaia_grpc.services.state_watch import TASKS_PER_READ
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.stamp import stamp
from tests.state.snapshot_checks import restored, whole
from tests.support.fake_node import FakeNode
from tests.support.served_peer import TIMEOUT_S, Serve, ServedPeer, eventually, failure_of

EXISTING = task_pb2.WATCH_KIND_EXISTING
COMPLETE = task_pb2.WATCH_KIND_COMPLETE
CHANGED = task_pb2.WATCH_KIND_CHANGED
REMOVED = task_pb2.WATCH_KIND_REMOVED
RESYNC = task_pb2.WATCH_KIND_RESYNC
PROGRESS = task_pb2.WATCH_KIND_PROGRESS
TaskStub: Any = task_pb2_grpc.TaskServiceStub


async def enqueue(peer: ServedPeer, count: int = 1, **fields: Any) -> list[str]:
    fields.setdefault("task_type", "grade")
    request = task_pb2.BatchEnqueueTasksRequest(tasks=[task_pb2.NewTask(**fields)] * count)
    answer = await peer.tasks.BatchEnqueueTasks(request, timeout=TIMEOUT_S)
    return [task.task_id for task in answer.tasks]


async def claim(peer: ServedPeer, session_id: str) -> task_pb2.Task:
    request = task_pb2.ClaimTasksRequest(session_id=session_id)
    [task] = (await peer.tasks.ClaimTasks(request, timeout=TIMEOUT_S)).tasks
    return task


async def complete(peer: ServedPeer, task: task_pb2.Task) -> None:
    request = task_pb2.CompleteTaskRequest(
        task_id=task.task_id, claim_token=task.claim_token, session_id=task.claimed_by
    )
    await peer.tasks.CompleteTask(request, timeout=TIMEOUT_S)


async def read(watch: Any) -> Any:
    return await asyncio.wait_for(watch.read(), TIMEOUT_S)


async def read_until(watch: Any, kind: int) -> list[Any]:
    messages = [await read(watch)]
    while messages[-1].kind != kind:
        messages.append(await read(watch))
    return messages


def watch_tasks(peer: ServedPeer, **fields: Any) -> Any:
    fields.setdefault("interval_ms", 60_000)
    return peer.tasks.WatchTasks(task_pb2.WatchTasksRequest(**fields))


def watch_sessions(peer: ServedPeer, **fields: Any) -> Any:
    fields.setdefault("interval_ms", 60_000)
    return peer.sessions.WatchSessions(session_pb2.WatchSessionsRequest(**fields))


async def test_a_watch_sends_all_tasks_in_pages_and_then_each_change(peer: ServedPeer) -> None:
    ids = await enqueue(peer, 2 * TASKS_PER_READ + 1)
    session = await peer.register()
    watch = watch_tasks(peer)
    *pages, last = await read_until(watch, COMPLETE)
    assert {page.kind for page in pages} == {EXISTING}
    assert max(len(page.tasks) for page in pages) <= TASKS_PER_READ
    assert [task.task_id for page in pages for task in page.tasks] == ids
    assert last.through_index == peer.node.machine.applied_index
    assert last.cluster_id == peer.node.status().cluster_id
    task = await claim(peer, session.session_id)
    message = await read(watch)
    assert (message.kind, message.task.task_id) == (CHANGED, ids[0])
    assert message.task.claimed_by == session.session_id
    await complete(peer, task)
    message = await read(watch)
    assert message.task.state == task_pb2.TASK_STATE_COMPLETED
    assert message.applied_index == message.through_index == peer.node.machine.applied_index
    watch.cancel()


async def test_a_watch_selects_by_type_affinity_state_and_id(peer: ServedPeer) -> None:
    [grade] = await enqueue(peer, affinity="math")
    [tutor] = await enqueue(peer, task_type="tutor", affinity="art")
    session = await peer.register(specialty="math")
    for fields, wanted in (
        ({"task_type": "tutor"}, tutor),
        ({"affinity": "math"}, grade),
        ({"task_id": grade}, grade),
    ):
        watch = watch_tasks(peer, **fields)
        page, _ = await read_until(watch, COMPLETE)
        assert [task.task_id for task in page.tasks] == [wanted]
        watch.cancel()
    watch = watch_tasks(peer, state=task_pb2.TASK_STATE_PENDING)
    page, _ = await read_until(watch, COMPLETE)
    assert len(page.tasks) == 2
    await claim(peer, session.session_id)
    message = await read(watch)
    assert (message.kind, message.task.task_id) == (REMOVED, grade)
    watch.cancel()


async def test_a_watch_of_sessions_sends_them_and_each_change(peer: ServedPeer) -> None:
    manager = await peer.register("m", tier=session_pb2.TIER_MANAGER)
    worker = await peer.register("w")
    watch = watch_sessions(peer)
    page, _ = await read_until(watch, COMPLETE)
    assert [one.name for one in page.sessions] == ["m", "w"]
    managers = watch_sessions(peer, tier=session_pb2.TIER_MANAGER)
    page, _ = await read_until(managers, COMPLETE)
    assert [one.name for one in page.sessions] == ["m"]
    await enqueue(peer)
    await claim(peer, worker.session_id)
    message = await read(watch)
    assert (message.session.name, message.session.claimed_tasks) == ("w", 1)
    request = session_pb2.DeregisterSessionRequest(session_id=manager.session_id)
    await peer.sessions.DeregisterSession(request, timeout=TIMEOUT_S)
    for each in (watch, managers):
        message = await read(each)
        assert (message.kind, message.session.name) == (REMOVED, "m")
        each.cancel()


async def test_a_session_that_fails_is_told(peer: ServedPeer) -> None:
    await peer.register("w")
    watch = watch_sessions(peer)
    await read_until(watch, COMPLETE)
    await peer.node.let_pass(16_000)
    assert (await read(watch)).session.health == session_pb2.HEALTH_DEGRADED
    await peer.node.let_pass(15_000)
    assert (await read(watch)).session.health == session_pb2.HEALTH_FAILED
    watch.cancel()


async def test_a_watch_goes_on_after_an_index_without_a_new_picture(peer: ServedPeer) -> None:
    await enqueue(peer, 3)
    watch = watch_tasks(peer)
    through = (await read_until(watch, COMPLETE))[-1].through_index
    watch.cancel()
    [task_id] = await enqueue(peer)
    cluster_id = peer.node.status().cluster_id
    watch = watch_tasks(peer, after_index=through, cluster_id=cluster_id)
    message = await read(watch)
    assert (message.kind, message.task.task_id) == (CHANGED, task_id)
    watch.cancel()


async def test_an_index_of_another_cluster_starts_again(peer: ServedPeer) -> None:
    await enqueue(peer)
    watch = watch_tasks(peer, after_index=1_000_000, cluster_id="another")
    kinds = [message.kind for message in await read_until(watch, COMPLETE)]
    assert kinds == [RESYNC, EXISTING, COMPLETE]
    watch.cancel()


@pytest.mark.twin_only  # the state is replaced by hand
async def test_a_watch_starts_again_where_a_newer_state_was_taken_over(peer: ServedPeer) -> None:
    [task_id] = await enqueue(peer)
    await peer.register("w")
    watch, sessions = watch_tasks(peer), watch_sessions(peer)
    await read_until(watch, COMPLETE)
    await read_until(sessions, COMPLETE)
    newer = restored(whole(peer.node.machine))
    newer.apply(newer.applied_index + 1, int(EntryKind.NOOP), b"")
    # One entry that the watch never saw, and a snapshot behind it.
    ahead = restored(_with_another_task(newer))
    assert isinstance(peer.node, FakeNode)
    peer.node.install(ahead)
    messages = await read_until(watch, COMPLETE)
    assert [message.kind for message in messages] == [RESYNC, EXISTING, COMPLETE]
    assert messages[0].resync
    assert task_id in [task.task_id for task in messages[1].tasks]
    assert len(messages[1].tasks) == 2
    kinds = [message.kind for message in await read_until(sessions, COMPLETE)]
    assert kinds == [RESYNC, EXISTING, COMPLETE]
    watch.cancel()
    sessions.cancel()


def _with_another_task(machine: StateMachine) -> bytes:
    body = command_pb2.EnqueueTasks(tasks=[command_pb2.TaskSpec(task_type="t", affinity="math")])
    command = command_pb2.Command(enqueue_tasks=body).SerializeToString()
    now_ms = machine.elapsed_ms
    machine.apply(machine.applied_index + 1, int(EntryKind.COMMAND), stamp(command, now_ms, now_ms))
    return whole(machine)


async def test_a_silent_watch_tells_how_far_it_is(peer: ServedPeer) -> None:
    """Also where all that happened was not for it; and a peer that has lost its cluster is silent,
    so that its watchers look for another one."""
    watch = watch_tasks(peer, task_type="none", interval_ms=100)
    await read_until(watch, COMPLETE)
    await enqueue(peer)
    index = peer.node.machine.applied_index
    while True:
        message = await read(watch)
        assert message.kind == PROGRESS
        if message.through_index >= index:
            break
    peer.node.set_status(writable=False)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(read_until(watch, COMPLETE), 1)
    watch.cancel()


async def test_a_slow_watcher_is_closed_with_its_cursor_and_slows_nobody(serve: Serve) -> None:
    options = [
        ("grpc.http2.lookahead_bytes", 65_536),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with (
        serve(subscriber_write_timeout_ms=300) as served,
        grpc.aio.insecure_channel(served.address, options=options) as slow_channel,
    ):
        slow = TaskStub(slow_channel).WatchTasks(task_pb2.WatchTasksRequest())
        through = (await read_until(slow, COMPLETE))[-1].through_index
        watch = watch_tasks(served)
        await read_until(watch, COMPLETE)
        for _ in range(4):
            ids = await enqueue(served, 1_000, affinity="a" * 128)
        seen = [(await read(watch)).task.task_id for _ in range(4_000)]
        assert seen[-1_000:] == ids
        await eventually(lambda: served.port.interceptor.streams == 1)
        failure = await failure_of(slow)
        assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert failure.reason == "SUBSCRIBER_TOO_SLOW"
        assert int(failure.metadata["through_index"]) >= through
        watch.cancel()


async def test_a_burst_of_1_000_completions_is_told_whole(peer: ServedPeer) -> None:
    ids = await enqueue(peer, 1_000)
    session = await peer.register(max_concurrent_tasks=1_000)
    request = task_pb2.ClaimTasksRequest(session_id=session.session_id, max_tasks=1_000)
    claimed = (await peer.tasks.ClaimTasks(request, timeout=TIMEOUT_S)).tasks
    watch = watch_tasks(peer)
    await read_until(watch, COMPLETE)
    burst = task_pb2.BatchCompleteTasksRequest(
        session_id=session.session_id,
        completions=[
            task_pb2.Completion(task_id=task.task_id, claim_token=task.claim_token)
            for task in claimed
        ],
    )
    await peer.tasks.BatchCompleteTasks(burst, timeout=TIMEOUT_S)
    messages = [await read(watch) for _ in ids]
    assert [message.task.task_id for message in messages] == ids
    assert {message.task.state for message in messages} == {task_pb2.TASK_STATE_COMPLETED}
    assert messages[-1].through_index == messages[-1].applied_index
    watch.cancel()


async def test_bad_watches_are_refused(peer: ServedPeer) -> None:
    for watch in (
        watch_tasks(peer, state=99),
        watch_tasks(peer, after_index=-1),
        watch_tasks(peer, interval_ms=5),
        watch_sessions(peer, health=99),
    ):
        failure = await failure_of(watch)
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
        assert failure.violations


async def test_an_assignment_is_explained(peer: ServedPeer) -> None:
    await peer.register("ada", specialty="math", max_concurrent_tasks=1)
    [task_id] = await enqueue(peer, affinity="math")
    request = task_pb2.ExplainAssignmentRequest(task_id=task_id)
    answer = await peer.tasks.ExplainAssignment(request, timeout=TIMEOUT_S)
    assert answer.explanation == "pending; 1 of 1 sessions would get it now"
    assert [one.eligible for one in answer.explanations] == [True]
    request = task_pb2.ExplainAssignmentRequest(task_id="t-9")
    failure = await failure_of(peer.tasks.ExplainAssignment(request, timeout=TIMEOUT_S))
    assert failure.code is grpc.StatusCode.NOT_FOUND
