"""InstallSnapshot as it is on the wire: reasons, connections that break, what is held in memory."""

from __future__ import annotations

import asyncio
import hashlib
import os
import zlib
from collections.abc import AsyncIterator
from random import Random

import grpc
import pytest
from gaia.raft.v1 import raft_pb2 as pb
from gaia.raft.v1 import raft_pb2_grpc

from gaia_grpc.raft.messages import AppendResponse, Envelope, SnapshotRequest
from gaia_grpc.raft.types import NodeId, Term
from gaia_grpc.transport.links import ACCEPTED, reason_of
from gaia_grpc.transport.options import TransportOptions
from gaia_grpc.transport.snapshot_stream import STORED_KEY
from gaia_grpc.transport.wire import hello_to_proto
from gaia_grpc.transport.wire_calls import offer_to_proto
from tests.transport.peers import WAIT_S, Cluster, Peer
from tests.transport.snapshots import META, Sink

A, B = NodeId("a"), NodeId("b")
DATA = b"0123456789"
SHA256 = hashlib.sha256(DATA).digest()


def offer(a: Peer, **changes: int | bytes) -> pb.InstallSnapshotRequest:
    message = offer_to_proto(Term(4), META, len(DATA), SHA256)
    message.hello.CopyFrom(hello_to_proto(a.recorder.hello(B)))
    message.MergeFrom(pb.InstallSnapshotRequest(**changes))  # type: ignore[arg-type]  # by name
    return message


def chunk(data: bytes = DATA, offset: int = 0, crc: int | None = None) -> pb.InstallSnapshotRequest:
    crc32 = zlib.crc32(data) if crc is None else crc
    return pb.InstallSnapshotRequest(offset_bytes=offset, data=data, crc32=crc32)


async def install(
    b: Peer, *frames: pb.InstallSnapshotRequest, first_wait: bool = True
) -> tuple[str, pb.InstallSnapshotResponse | None]:
    """The reason that ended the stream ("" for none), and the answer."""
    async with grpc.aio.insecure_channel(b.address) as channel:
        call = raft_pb2_grpc.RaftServiceStub(channel).InstallSnapshot(timeout=WAIT_S)
        try:
            for frame in frames:
                await call.write(frame)
            await call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # what it ended with is its status
        try:
            return "", await call
        except grpc.aio.AioRpcError as error:
            return reason_of(error), None


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([chunk(crc=7)], "SNAPSHOT_CRC"),
        ([chunk(offset=3)], "SNAPSHOT_OFFSET"),
        ([chunk(DATA[:4]), chunk(DATA[:4])], "SNAPSHOT_OFFSET"),
        ([chunk(offset=-1)], "SNAPSHOT_OFFSET"),
        ([chunk(DATA + b"x")], "SNAPSHOT_SIZE"),
        ([chunk(DATA), chunk(b"x", 10)], "SNAPSHOT_SIZE"),
        ([chunk(b"")], "SNAPSHOT_SIZE"),
        ([chunk(bytes((1 << 20) + 1))], "SNAPSHOT_SIZE"),
        ([chunk(DATA[:4])], "SNAPSHOT_INCOMPLETE"),
        ([], "SNAPSHOT_INCOMPLETE"),
        ([chunk(DATA[::-1])], "SNAPSHOT_DIGEST"),
    ],
)
async def test_what_does_not_fit_ends_the_stream_with_its_reason(
    cluster: Cluster, frames: list[pb.InstallSnapshotRequest], reason: str
) -> None:
    a, b = await cluster(2)
    assert await install(b, offer(a), *frames) == (reason, None)
    await b.recorder.until(lambda: b.recorder.sinks == 0)
    assert b.recorder.installed == []


async def test_a_right_transfer_is_answered_with_what_is_stored(cluster: Cluster) -> None:
    a, b = await cluster(2)
    reason, answer = await install(b, offer(a), chunk(DATA[:3]), chunk(DATA[3:], 3))
    assert reason == ""
    assert answer == pb.InstallSnapshotResponse(term=4, stored_size_bytes=10, installed=True)
    assert b.recorder.installed == [(A, Term(4), META, DATA)]


@pytest.mark.parametrize(
    "changes",
    [
        {"term": -1},
        {"last_included_index": -1},
        {"last_included_term": -1},
        {"total_size_bytes": -1},
        {"sha256": b"short"},
        {"data": b"x"},
    ],
)
async def test_an_offer_that_makes_no_sense_is_invalid(
    cluster: Cluster, changes: dict[str, int | bytes]
) -> None:
    a, b = await cluster(2)
    assert await install(b, offer(a, **changes)) == ("INVALID_ARGUMENT", None)
    assert b.recorder.stored == {}


async def test_a_stranger_and_a_silent_caller_install_nothing(cluster: Cluster) -> None:
    a, b = await cluster(2)
    b.recorder.refused = ["uuid-a"]
    assert await install(b, offer(a)) == ("IDENTITY_REFUSED", None)
    assert await install(b) == ("", pb.InstallSnapshotResponse())


async def test_a_sender_that_falls_silent_is_given_up(cluster: Cluster) -> None:
    a, b = await cluster(2, TransportOptions(snapshot_chunk_timeout_ms=50))
    async with grpc.aio.insecure_channel(b.address) as channel:
        call = raft_pb2_grpc.RaftServiceStub(channel).InstallSnapshot(timeout=WAIT_S)
        await call.write(offer(a))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    assert reason_of(caught.value) == "SNAPSHOT_IDLE"
    assert b.recorder.at_rest


async def test_the_receiver_says_how_much_it_holds_before_the_first_chunk(cluster: Cluster) -> None:
    a, b = await cluster(2)
    assert (await install(b, offer(a), chunk(DATA[:7])))[0] == "SNAPSHOT_INCOMPLETE"
    async with grpc.aio.insecure_channel(b.address) as channel:
        call = raft_pb2_grpc.RaftServiceStub(channel).InstallSnapshot(timeout=WAIT_S)
        await call.write(offer(a))
        metadata = dict(tuple(await call.initial_metadata()))
        await call.done_writing()
        await call.code()
    assert metadata[ACCEPTED[0]] == ACCEPTED[1]
    stored = metadata[STORED_KEY]
    assert isinstance(stored, bytes)
    expected = pb.InstallSnapshotResponse(term=4, stored_size_bytes=7)
    assert pb.InstallSnapshotResponse.FromString(stored) == expected


def request(peer: Peer, term: int = 4) -> None:
    assert peer.transport is not None
    peer.transport.send(Envelope(peer.node_id, B, Term(term), SnapshotRequest(META)))


async def test_a_receiver_that_crashes_meanwhile_gets_the_rest_afterwards(cluster: Cluster) -> None:
    a, b = await cluster(2, TransportOptions(snapshot_chunk_size_bytes=1_000))
    a.recorder.content = Random(3).randbytes(20_500)
    reached = asyncio.Event()

    async def stop_at_ten(sink: Sink, data: bytes) -> None:
        if sink.stored_size_bytes >= 10_000 and not reached.is_set():
            reached.set()

    b.recorder.before_append = stop_at_ten
    request(a)
    async with asyncio.timeout(WAIT_S):
        await reached.wait()
    await b.cut_off()
    await a.recorder.until(lambda: len(a.recorder.reports) == 1)
    assert a.recorder.reports[0][2] is False or b.recorder.installed
    b.bind()
    await b.start()
    request(a)
    await a.recorder.until(lambda: len(a.recorder.reports) == 2)
    assert a.recorder.reports[1][2]
    assert b.recorder.installed[-1] == (A, Term(4), META, a.recorder.content)
    assert b.recorder.cut_in_two == 0
    assert a.recorder.given_out == 0


async def test_a_slow_receiver_holds_the_sender_back(cluster: Cluster) -> None:
    """Nobody reads the whole snapshot into memory: the sender stops a few MiB ahead."""
    a, b = await cluster(2, TransportOptions(snapshot_chunk_timeout_ms=WAIT_S * 1000))  # type: ignore[arg-type]  # whole
    a.recorder.content = bytes(64 << 20)
    go_on = asyncio.Event()

    async def wait(sink: Sink, data: bytes) -> None:
        await go_on.wait()

    b.recorder.before_append = wait
    request(a)
    seen = -1
    while seen != len(a.recorder.reads):
        seen = len(a.recorder.reads)
        await asyncio.sleep(0.2)
    assert seen * (256 << 10) <= 8 << 20
    assert a.transport is not None
    a.transport.cancel_snapshots()
    go_on.set()
    await a.recorder.until(lambda: len(a.recorder.reports) == 1)
    await b.recorder.until(lambda: b.recorder.at_rest)


async def test_entries_and_heartbeats_pass_a_snapshot(cluster: Cluster) -> None:
    a, b = await cluster(2)
    a.recorder.content = bytes(24 << 20)
    loop = asyncio.get_running_loop()
    request(a)
    times_s = []
    while not a.recorder.reports:
        seen, began_s = len(a.recorder.payloads(AppendResponse)), loop.time()
        a.append("b", data=b"entry")
        await a.recorder.until(
            lambda seen=seen: len(a.recorder.payloads(AppendResponse)) > seen  # type: ignore[misc]  # bound per turn
        )
        times_s.append(loop.time() - began_s)
    assert a.recorder.reports == [(B, META, True)]
    assert len(times_s) >= 20
    # Half of the time between two heartbeats, on a machine that has other work too.
    assert sorted(times_s)[len(times_s) * 9 // 10] < 0.075
    assert b.recorder.broken == []


@pytest.fixture
async def at_rest() -> AsyncIterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    for _ in range(100):
        if len(os.listdir("/proc/self/fd")) <= before + 2:
            return
        await asyncio.sleep(0.02)  # gRPC closes sockets from a thread of its own
    raise AssertionError(f"{len(os.listdir('/proc/self/fd')) - before} files are left open")


async def test_transfers_leave_nothing_open(at_rest: None, cluster: Cluster) -> None:
    a, b = await cluster(2)
    a.recorder.content = DATA
    tasks = len(asyncio.all_tasks())
    for turn in range(1, 21):
        request(a)
        await a.recorder.until(lambda turn=turn: len(a.recorder.reports) == turn)  # type: ignore[misc]  # bound per turn
    await b.recorder.until(lambda: b.recorder.at_rest)
    assert len(b.recorder.installed) == 20
    for _ in range(20):
        await asyncio.sleep(0.01)
        if len(asyncio.all_tasks()) <= tasks:
            break
    assert len(asyncio.all_tasks()) <= tasks
    await a.stop()
    await b.stop()
