"""Redirects, retries, request ids, deadlines and error translation of the one call."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from gaia.task.v1 import task_pb2

from gaia_grpc.client import Client
from gaia_grpc.client.connection import parse_targets
from gaia_grpc.errors import (
    AlreadyExistsError,
    ConfigError,
    FailedPreconditionError,
    GaiaError,
    InvalidArgumentError,
    NotFoundError,
    OutcomeUnknownError,
    OverloadedError,
    PermissionDeniedError,
    ResourceExhaustedError,
    StaleClaimError,
    UnavailableError,
    UnimplementedError,
)
from tests.client.conftest import Connect
from tests.client.fake_peer import Context, FakePeer, never, refuse

Peers = tuple[FakePeer, FakePeer]
Request = task_pb2.EnqueueTaskRequest
Response = task_pb2.EnqueueTaskResponse


async def accept(request: Request, context: Context) -> Response:
    return Response(task=task_pb2.Task(task_id="t1", task_type=request.task_type))


async def test_a_call_reaches_the_peer_with_a_request_id_and_the_client_id(
    peers: Peers, connect: Connect
) -> None:
    a, _ = peers
    a.answers["EnqueueTask"] = accept
    client = await connect(a, client_id="me")
    assert (await client.tasks.enqueue("grade", b"x")).task.task_id == "t1"
    [request] = a.of("EnqueueTask")
    assert request.request_id
    assert a.requests[-1][2] == "me"
    assert request.payload == b"x"


async def test_each_call_has_its_own_request_id_and_a_given_one_is_kept(
    peers: Peers, connect: Connect
) -> None:
    a, _ = peers
    a.answers["EnqueueTask"] = accept
    client = await connect(a)
    for request_id in ("", "", "mine"):
        await client.tasks.enqueue("grade", request_id=request_id)
    first, second, third = (request.request_id for request in a.of("EnqueueTask"))
    assert first != second
    assert third == "mine"


async def test_the_leader_trailer_sends_the_next_call_to_the_leader(
    peers: Peers, connect: Connect
) -> None:
    a, b = peers

    async def forwarded(request: Request, context: Context) -> Response:
        context.set_trailing_metadata((("gaia-leader", b.address),))
        return await accept(request, context)

    a.answers["EnqueueTask"], b.answers["EnqueueTask"] = forwarded, accept
    client = await connect(a)
    await client.tasks.enqueue("grade")
    await client.tasks.enqueue("grade")
    assert (len(a.of("EnqueueTask")), len(b.of("EnqueueTask"))) == (1, 1)


async def test_a_peer_that_does_not_lead_redirects_the_same_request(
    peers: Peers, connect: Connect
) -> None:
    a, b = peers

    async def redirect(request: Request, context: Context) -> Response:
        await refuse(context, grpc.StatusCode.UNAVAILABLE, "NOT_LEADER", leader=b.address)

    a.answers["EnqueueTask"], b.answers["EnqueueTask"] = redirect, accept
    client = await connect(a)
    await client.tasks.enqueue("grade")
    assert a.of("EnqueueTask") == b.of("EnqueueTask")


async def test_two_peers_that_name_each_other_are_not_asked_in_a_busy_loop(
    peers: Peers, connect: Connect
) -> None:
    a, b = peers
    for peer, other in ((a, b), (b, a)):

        async def redirect(request: Request, context: Context, to: str = other.address) -> Response:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, "NOT_LEADER", leader=to)

        peer.answers["EnqueueTask"] = redirect
    client = await connect(a)
    with pytest.raises(UnavailableError):
        await client.tasks.enqueue("grade", timeout=0.5)
    assert 5 <= len(a.of("EnqueueTask")) + len(b.of("EnqueueTask")) < 20


async def test_a_lost_connection_repeats_the_same_request_at_another_peer(
    peers: Peers, connect: Connect
) -> None:
    a, b = peers
    arrived = asyncio.Event()

    async def hang(request: Request, context: Context) -> Response:
        arrived.set()
        await asyncio.Event().wait()
        return Response()

    a.answers["EnqueueTask"], b.answers["EnqueueTask"] = hang, accept
    client = await connect(a)
    call = asyncio.create_task(client.tasks.enqueue("grade"))
    await arrived.wait()
    started = time.monotonic()
    await a.stop()
    assert (await call).task.task_id == "t1"
    assert time.monotonic() - started < 1.0
    assert a.of("EnqueueTask") == b.of("EnqueueTask")


async def test_a_dead_leader_that_a_follower_still_names_is_not_asked_again(
    peers: Peers, connect: Connect
) -> None:
    a, b = peers

    async def stale_hint(request: Request, context: Context) -> Response:
        context.set_trailing_metadata((("gaia-leader", a.address),))
        return await accept(request, context)

    b.answers["EnqueueTask"] = stale_hint
    client = await connect(a)
    await a.stop()
    for _ in range(3):
        await client.tasks.enqueue("grade")
    assert len(b.of("EnqueueTask")) == 3
    assert client.peer().address == b.address


async def test_no_quorum_is_retried_and_ends_as_unavailable_within_the_budget(
    peers: Peers, connect: Connect
) -> None:
    a, _ = peers

    async def no_quorum(request: Request, context: Context) -> Response:
        code = grpc.StatusCode.UNAVAILABLE
        await refuse(context, code, "NO_QUORUM", retry_after_ms=100, message="no leader")

    a.answers["EnqueueTask"] = peers[1].answers["EnqueueTask"] = no_quorum
    client = await connect(a)
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="no leader") as caught:
        await client.tasks.enqueue("grade", timeout=0.6)
    assert time.monotonic() - started < 1.0
    assert caught.value.instance_reason == "NO_QUORUM"
    assert caught.value.retry_after_ms == 100
    assert isinstance(caught.value.__cause__, grpc.aio.AioRpcError)
    assert 2 <= len(a.of("EnqueueTask")) + len(peers[1].of("EnqueueTask")) <= 7


async def test_an_overloaded_peer_is_asked_again_after_the_time_it_names(
    peers: Peers, connect: Connect
) -> None:
    a, _ = peers
    times: list[float] = []

    async def overloaded_once(request: Request, context: Context) -> Response:
        times.append(time.monotonic())
        if len(times) == 1:
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
            await refuse(context, code, "OVERLOADED", retry_after_ms=200)
        return await accept(request, context)

    a.answers["EnqueueTask"] = overloaded_once
    client = await connect(a)
    await client.tasks.enqueue("grade")
    first, second = a.of("EnqueueTask")
    assert first == second
    assert times[1] - times[0] >= 0.2


async def test_a_full_table_without_a_retry_time_is_an_error_at_once(
    peers: Peers, connect: Connect
) -> None:
    a, _ = peers

    async def full(request: Request, context: Context) -> Response:
        await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED")

    a.answers["EnqueueTask"] = full
    client = await connect(a)
    with pytest.raises(ResourceExhaustedError):
        await client.tasks.enqueue("grade")
    assert len(a.of("EnqueueTask")) == 1


async def test_a_mutation_without_an_answer_ends_as_outcome_unknown(
    peers: Peers, connect: Connect
) -> None:
    a, b = peers
    a.answers["EnqueueTask"] = b.answers["EnqueueTask"] = never
    client = await connect(a, attempt_timeout=0.2)
    with pytest.raises(OutcomeUnknownError) as caught:
        await client.tasks.enqueue("grade", timeout=0.7)
    requests = a.of("EnqueueTask") + b.of("EnqueueTask")
    assert len(requests) >= 2
    assert {request.request_id for request in requests} == {caught.value.metadata["request_id"]}


async def test_a_read_without_an_answer_is_unavailable_and_not_unknown(
    peers: Peers, connect: Connect
) -> None:
    a, b = peers
    a.answers["GetTask"] = b.answers["GetTask"] = never
    client = await connect(a, attempt_timeout=0.1)
    with pytest.raises(UnavailableError):
        await client.tasks.get("t1", timeout=0.3)


async def test_a_peer_that_fails_inside_is_asked_three_times(
    peers: Peers, connect: Connect
) -> None:
    a, _ = peers

    async def broken(request: Request, context: Context) -> Response:
        await refuse(context, grpc.StatusCode.INTERNAL, "INTERNAL", message="error id 7")

    a.answers["EnqueueTask"] = broken
    client = await connect(a)
    with pytest.raises(OutcomeUnknownError, match="error id 7"):
        await client.tasks.enqueue("grade")
    assert len(a.of("EnqueueTask")) == 3


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (grpc.StatusCode.NOT_FOUND, "NOT_FOUND", NotFoundError),
        (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS", AlreadyExistsError),
        (grpc.StatusCode.FAILED_PRECONDITION, "STALE_CLAIM", StaleClaimError),
        (grpc.StatusCode.FAILED_PRECONDITION, "SESSION_FAILED", FailedPreconditionError),
        (grpc.StatusCode.PERMISSION_DENIED, "", PermissionDeniedError),
        (grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED", UnimplementedError),
        (grpc.StatusCode.NOT_FOUND, "", NotFoundError),
    ],
)
async def test_a_refusal_is_raised_at_once_as_its_class(
    peers: Peers,
    connect: Connect,
    code: grpc.StatusCode,
    reason: str,
    expected: type[GaiaError],
) -> None:
    a, _ = peers

    async def no(request: Request, context: Context) -> Response:
        await refuse(context, code, reason, message="no", metadata={"holder": "s2"})

    a.answers["EnqueueTask"] = no
    client = await connect(a)
    with pytest.raises(expected) as caught:
        await client.tasks.enqueue("grade")
    assert type(caught.value) is expected
    assert caught.value.message == "no"
    if reason:
        assert caught.value.instance_reason == reason
        assert caught.value.metadata == {"holder": "s2"}
    assert len(a.of("EnqueueTask")) == 1


async def test_bad_fields_come_back_with_their_violations(peers: Peers, connect: Connect) -> None:
    a, _ = peers

    async def no(request: Request, context: Context) -> Response:
        code, bad = grpc.StatusCode.INVALID_ARGUMENT, (("task_type", "must be set"),)
        await refuse(context, code, "INVALID_ARGUMENT", violations=bad)

    a.answers["EnqueueTask"] = no
    client = await connect(a)
    with pytest.raises(InvalidArgumentError) as caught:
        await client.tasks.enqueue("")
    [violation] = caught.value.violations
    assert (violation.field, violation.description) == ("task_type", "must be set")


async def test_one_peer_that_answers_is_enough_and_the_others_are_learned(
    peers: Peers, connect: Connect
) -> None:
    a, b = peers
    dead = await FakePeer().start()
    await dead.stop()
    a.status.leader_address = b.address
    b.answers["EnqueueTask"] = accept
    client = await connect(dead, a)
    assert set(client.addresses) == {dead.address, a.address, b.address}
    await client.tasks.enqueue("grade")
    assert len(b.of("EnqueueTask")) == 1


async def test_nobody_there_is_an_error_that_names_the_addresses(connect: Connect) -> None:
    dead = await FakePeer().start()
    await dead.stop()
    with pytest.raises(UnavailableError, match=dead.address) as caught:
        await connect(dead, connect_timeout=0.3)
    assert "UNKNOWN" not in caught.value.message  # gRPC's inner words


async def test_an_app_may_start_while_nobody_is_there(peers: Peers, connect: Connect) -> None:
    dead = await FakePeer().start()
    await dead.stop()
    peers[0].answers["EnqueueTask"] = accept
    client = await connect(dead, peers[0], connect_timeout=0)
    assert client.metrics.buffer(student_id="ana", app_name="math").record("blur")
    assert not peers[0].of("GetStatus")
    await client.tasks.enqueue("grade")
    assert len(peers[0].of("EnqueueTask")) == 1


async def test_a_call_to_nobody_was_not_applied(peers: Peers, connect: Connect) -> None:
    a, b = peers
    client = await connect(a)
    await a.stop()
    await b.stop()
    with pytest.raises(UnavailableError) as caught:
        await client.tasks.enqueue("grade", timeout=0.4)
    assert not isinstance(caught.value, OutcomeUnknownError)


async def test_a_restarted_peer_is_reached_again(peers: Peers, connect: Connect) -> None:
    a, b = peers
    await b.stop()
    a.answers["EnqueueTask"] = accept
    client = await connect(a)
    await client.tasks.enqueue("grade")
    await a.stop()
    call = asyncio.create_task(client.tasks.enqueue("grade"))
    await asyncio.sleep(0)
    await a.start(a.address)
    assert (await call).task.task_id == "t1"


async def test_lists_follow_the_page_tokens(peers: Peers, connect: Connect) -> None:
    a, _ = peers

    async def page(
        request: task_pb2.ListTasksRequest, context: Context
    ) -> task_pb2.ListTasksResponse:
        number = int(request.page_token or "0")
        return task_pb2.ListTasksResponse(
            tasks=[task_pb2.Task(task_id=f"t{number}")],
            next_page_token=str(number + 1) if number < 2 else "",
        )

    a.answers["ListTasks"] = page
    client = await connect(a)
    assert [task.task_id async for task in client.tasks.list()] == ["t0", "t1", "t2"]


async def test_the_status_of_every_peer_or_why_not(peers: Peers, connect: Connect) -> None:
    a, b = peers
    client = await connect(a)
    await b.stop()
    found = await client.cluster.statuses()
    assert not isinstance(found[a.address], Exception)
    assert isinstance(found[b.address], UnavailableError)


async def test_overload_that_lasts_ends_as_overload(peers: Peers, connect: Connect) -> None:
    a, _ = peers

    async def overloaded(request: Request, context: Context) -> Response:
        code = grpc.StatusCode.RESOURCE_EXHAUSTED
        await refuse(context, code, "OVERLOADED", retry_after_ms=100)

    a.answers["EnqueueTask"] = overloaded
    client = await connect(a)
    with pytest.raises(OverloadedError):
        await client.tasks.enqueue("grade", timeout=0.3)


@pytest.mark.parametrize(
    "targets",
    ["", "localhost", "localhost:", ":1", "h:0", "h:70000", [" "], "a:1;b:2", "http://a:1"],
)
def test_malformed_addresses_are_refused(targets: str | list[str]) -> None:
    with pytest.raises(ConfigError):
        parse_targets(targets)


def test_addresses_are_kept_in_order_and_once() -> None:
    assert parse_targets("b:2, a:1,b:2") == ("b:2", "a:1")
    assert parse_targets("[::1]:1") == ("[::1]:1",)


async def test_a_closed_client_says_so(peers: Peers) -> None:
    client = await Client.connect(peers[0].address)
    await client.close()
    await client.close()
    with pytest.raises(UnavailableError, match="closed"):
        await client.tasks.enqueue("grade")
