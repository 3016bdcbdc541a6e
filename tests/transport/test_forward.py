"""Forwarded calls: many in flight, and what is known when one gets no answer."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from gaia_grpc.errors import (
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    UnavailableError,
)
from gaia_grpc.raft.types import Index, NodeId, Term
from gaia_grpc.transport.api import (
    AppliedCommand,
    ForwardedCall,
    ForwardedOutcome,
    ForwardFailure,
    ReadIndexGrant,
)
from gaia_grpc.transport.options import TransportOptions
from tests.transport.peers import WAIT_S, Cluster, Peer

B = NodeId("b")


async def ask(peer: Peer, command: bytes | None, timeout_s: float = WAIT_S) -> ForwardedOutcome:
    assert peer.transport is not None
    return await peer.transport.forward(B, ForwardedCall(command, int(timeout_s * 1000)), timeout_s)


async def never(call: ForwardedCall) -> ForwardedOutcome:
    await asyncio.Event().wait()
    raise AssertionError(call)


async def test_commands_and_reads_are_answered(cluster: Cluster) -> None:
    a, b = await cluster(2)
    assert await ask(a, b"enqueue") == AppliedCommand(Term(1), Index(1), b"ENQUEUE")
    assert await ask(a, None) == ReadIndexGrant(Index(2))
    assert b.recorder.calls == [ForwardedCall(b"enqueue", 10_000), ForwardedCall(None, 10_000)]


async def test_answers_find_their_callers_in_any_order(cluster: Cluster) -> None:
    a, b = await cluster(2, TransportOptions(max_frame_calls=7, max_frame_size_bytes=500))
    gates = [asyncio.Event() for _ in range(100)]

    async def gated(call: ForwardedCall) -> ForwardedOutcome:
        assert call.command is not None
        number = int(call.command[:2])
        await gates[number].wait()
        return AppliedCommand(Term(1), Index(number), call.command[::-1])

    b.recorder.on_call = gated
    asked = [
        asyncio.create_task(ask(a, b"%02d" % number + b"x" * (number * 20)))
        for number in range(100)
    ]
    await b.recorder.until(lambda: len(b.recorder.calls) == 100)
    for gate in reversed(gates):
        gate.set()
    for number, outcome in enumerate(await asyncio.gather(*asked)):
        command = b"%02d" % number + b"x" * (number * 20)
        assert outcome == AppliedCommand(Term(1), Index(number), command[::-1])


async def test_errors_of_the_leader_come_as_failures(cluster: Cluster) -> None:
    a, b = await cluster(2)

    async def refuse(call: ForwardedCall) -> ForwardedOutcome:
        match call.command:
            case b"not leader":
                raise NotLeaderError("try c", leader_id="c")
            case b"overloaded":
                raise OverloadedError("later", retry_after_ms=70)
            case _:
                raise ValueError("secret")

    b.recorder.on_call = refuse
    assert await ask(a, b"not leader") == ForwardFailure("NOT_LEADER", "try c", NodeId("c"))
    assert await ask(a, b"overloaded") == ForwardFailure("OVERLOADED", "later", NodeId(""), 70)
    with capture_logs() as logs:
        failure = await ask(a, b"bug")
    assert failure == ForwardFailure("OUTCOME_UNKNOWN", "internal error of the leader")
    assert [entry["event"] for entry in logs] == ["forwarded call failed"]


async def test_a_leader_that_can_not_be_reached_applied_nothing(cluster: Cluster) -> None:
    a, b = await cluster(2)
    await b.stop()
    with pytest.raises(UnavailableError):
        await ask(a, b"command")
    assert a.transport is not None
    with pytest.raises(UnavailableError, match="no way to peer"):
        await a.transport.forward(NodeId("z"), ForwardedCall(b"command", 1000), 1.0)


async def test_a_command_without_an_answer_is_of_unknown_outcome(cluster: Cluster) -> None:
    a, b = await cluster(2)
    b.recorder.on_call = never
    with pytest.raises(OutcomeUnknownError):
        await ask(a, b"command", timeout_s=0.1)
    with pytest.raises(UnavailableError):
        await ask(a, None, timeout_s=0.1)
    command = asyncio.create_task(ask(a, b"command"))
    read = asyncio.create_task(ask(a, None))
    await b.recorder.until(lambda: len(b.recorder.calls) == 4)
    await b.cut_off()
    with pytest.raises(OutcomeUnknownError):
        await command
    with pytest.raises(UnavailableError):
        await read


async def test_the_leader_gives_up_at_the_callers_deadline(cluster: Cluster) -> None:
    a, b = await cluster(2)
    b.recorder.on_call = never
    assert a.transport is not None
    outcome = await a.transport.forward(B, ForwardedCall(b"command", 50), WAIT_S)
    assert outcome == ForwardFailure("OUTCOME_UNKNOWN", "no outcome in time")
    outcome = await a.transport.forward(B, ForwardedCall(None, 50), WAIT_S)
    assert outcome == ForwardFailure("NO_QUORUM", "no outcome in time")
    assert b.recorder.cancelled_calls == 2


async def test_calls_of_a_follower_that_is_gone_are_cancelled(cluster: Cluster) -> None:
    a, b = await cluster(2)
    b.recorder.on_call = never
    asked = asyncio.create_task(ask(a, b"command"))
    await b.recorder.until(lambda: len(b.recorder.calls) == 1)
    await a.stop()
    with pytest.raises(OutcomeUnknownError, match="stopping"):
        await asked
    await b.recorder.until(lambda: b.recorder.cancelled_calls == 1)
    with pytest.raises(UnavailableError):
        await ask(a, b"command")


async def test_calls_in_flight_are_bounded_on_both_sides(cluster: Cluster) -> None:
    a, b = await cluster(2, TransportOptions(max_forwards_in_flight=3))
    b.recorder.on_call = never
    asked = [asyncio.create_task(ask(a, b"command", timeout_s=0.3)) for _ in range(5)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    kinds = [type(result) for result in results]
    assert (kinds.count(OutcomeUnknownError), kinds.count(OverloadedError)) == (3, 2)
    assert len(b.recorder.calls) == 3


async def test_a_cancelled_caller_leaves_nothing_behind(cluster: Cluster) -> None:
    a, b = await cluster(2)
    b.recorder.on_call = never
    asked = asyncio.create_task(ask(a, b"command"))
    await b.recorder.until(lambda: len(b.recorder.calls) == 1)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert a.transport is not None
    assert not a.transport._links[B].forwards._pending
    b.recorder.on_call = None
    assert isinstance(await ask(a, b"next"), AppliedCommand)


async def test_a_stream_comes_back_after_a_break(cluster: Cluster) -> None:
    a, b = await cluster(2)
    await ask(a, b"one")
    await b.cut_off()
    b.bind()
    await b.start()
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await ask(a, b"two")
                break
            except (UnavailableError, OutcomeUnknownError):
                await asyncio.sleep(0.02)
    assert b.recorder.calls[-1].command == b"two"
