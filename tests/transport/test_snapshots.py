"""What a transfer of a snapshot promises, by both transports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from random import Random

import pytest
from structlog.testing import capture_logs

from gaia_grpc.errors import SnapshotRefusedError, StorageFullError, UnavailableError
from gaia_grpc.raft.messages import Envelope, SnapshotRequest
from gaia_grpc.raft.types import NodeId, SnapshotMeta, Term
from gaia_grpc.transport.api import InboundHandler, PeerTransport
from gaia_grpc.transport.memory import MemoryHub, MemoryNetwork
from gaia_grpc.transport.options import TransportOptions
from tests.transport.peers import WAIT_S, Cluster, Recorder
from tests.transport.snapshots import META, NEWER, Sink

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
CHUNK_SIZE_BYTES = 4_096
CONTENT = Random(5).randbytes(3 * CHUNK_SIZE_BYTES + 100)
OPTIONS = TransportOptions(snapshot_chunk_size_bytes=CHUNK_SIZE_BYTES)


@dataclass
class Trio:
    """Leaders a and c, and b, who lags."""

    transports: dict[NodeId, PeerTransport]
    handlers: dict[NodeId, Recorder]
    addresses: dict[NodeId, str]

    @property
    def a(self) -> Recorder:
        return self.handlers[A]

    @property
    def b(self) -> Recorder:
        return self.handlers[B]

    def request(self, meta: SnapshotMeta = META, *, term: int = 4, leader: NodeId = A) -> None:
        envelope = Envelope(leader, B, Term(term), SnapshotRequest(meta))
        self.transports[leader].send(envelope)

    async def reported(self, count: int = 1, leader: NodeId = A) -> list[bool]:
        """Waits for that many reports, and that everything is closed."""
        handler = self.handlers[leader]
        await handler.until(lambda: len(handler.reports) >= count)
        await self.b.until(lambda: self.b.sinks == 0)
        assert handler.given_out == 0
        return [delivered for _, _, delivered in handler.reports]


@pytest.fixture(params=["grpc", "memory"])
async def trio(request: pytest.FixtureRequest, cluster: Cluster) -> AsyncIterator[Trio]:
    if request.param == "grpc":
        peers = await cluster(3, OPTIONS)
        yield Trio(
            {peer.node_id: peer.recorder.transport for peer in peers if peer.recorder.transport},
            {peer.node_id: peer.recorder for peer in peers},
            {peer.node_id: peer.address for peer in peers},
        )
        return
    hub = MemoryHub(MemoryNetwork(Random(1)))
    transports: dict[NodeId, PeerTransport] = {}
    handlers = {name: Recorder(node_id=name, peer_uuid=f"uuid-{name}") for name in (A, B, C)}
    for name, handler in handlers.items():
        memory = hub.transport(name)
        memory.chunk_size_bytes = CHUNK_SIZE_BYTES
        handler.accepted = {other: f"uuid-{other}" for other in handlers if other != name}
        transports[name] = handler.transport = memory
        inbound: InboundHandler = handler
        await memory.start(inbound)
    yield Trio(transports, handlers, {name: f"{name}:1" for name in handlers})
    for transport in transports.values():
        await transport.close()


async def test_a_snapshot_arrives_whole_and_is_reported_once(trio: Trio) -> None:
    trio.a.content = CONTENT
    trio.request()
    assert await trio.reported() == [True]
    assert trio.b.installed == [(A, Term(4), META, CONTENT)]
    assert trio.a.reports == [(B, META, True)]
    assert trio.a.reads == [0, 4096, 8192, 12288]


async def test_a_newer_one_than_asked_for_is_named_in_the_report(trio: Trio) -> None:
    trio.a.content, trio.a.meta = CONTENT, NEWER
    trio.request()
    assert await trio.reported() == [True]
    assert trio.a.reports == [(B, NEWER, True)]
    assert trio.b.installed[0][2] == NEWER


async def test_an_empty_snapshot_needs_no_chunk(trio: Trio) -> None:
    trio.a.content = b""
    trio.request()
    assert await trio.reported() == [True]
    assert trio.b.installed == [(A, Term(4), META, b"")]


async def test_without_a_snapshot_the_transfer_is_reported_as_failed(trio: Trio) -> None:
    trio.request()
    assert await trio.reported() == [False]
    assert trio.a.reports == [(B, META, False)]


@pytest.mark.parametrize("kept_size_bytes", [0, 1_000, CHUNK_SIZE_BYTES])
async def test_a_transfer_goes_on_where_it_was_interrupted(
    trio: Trio, kept_size_bytes: int
) -> None:
    """Broken at each chunk: before, in and behind it; nothing that was stored travels again."""
    trio.a.content = CONTENT
    breaks = 0

    async def break_off(sink: Sink, data: bytes) -> None:
        nonlocal breaks
        if breaks < 4 and sink.stored_size_bytes >= breaks * kept_size_bytes:
            breaks += 1
            part = data[:kept_size_bytes]
            sink.owner.stored[sink.key] += part
            sink.owner.appended_size_bytes += len(part)
            raise UnavailableError("interrupted")

    trio.b.before_append = break_off
    for turn in range(1, 6):
        trio.request()
        reports = await trio.reported(turn)
        if reports[-1]:
            break
    assert breaks == 4
    assert reports == [False] * (len(reports) - 1) + [True]
    assert trio.b.installed == [(A, Term(4), META, CONTENT)]
    assert trio.b.appended_size_bytes == len(CONTENT)


async def test_a_transfer_whose_end_was_lost_only_ends_again(trio: Trio) -> None:
    trio.a.content = CONTENT
    fail = [UnavailableError("the peer stopped here")]

    async def before_finish() -> None:
        if fail:
            raise fail.pop()

    trio.b.before_finish = before_finish
    trio.request()
    assert await trio.reported() == [False]
    read = len(trio.a.reads)
    trio.request()
    assert await trio.reported(2) == [False, True]
    assert len(trio.a.reads) == read


async def test_a_wrong_digest_is_named_and_the_next_transfer_begins_anew(trio: Trio) -> None:
    trio.a.content, trio.a.sha256 = CONTENT, bytes(32)
    with capture_logs() as logs:
        trio.request()
        assert await trio.reported() == [False]
    assert [entry["reason"] for entry in logs if "reason" in entry] == ["SNAPSHOT_DIGEST"]
    trio.a.sha256 = b""
    trio.request()
    assert await trio.reported(2) == [False, True]


@pytest.mark.parametrize(
    "refusal",
    [
        SnapshotRefusedError("deposed", reason="STALE_TERM"),
        UnavailableError("not now"),
        StorageFullError("no space"),
    ],
)
async def test_a_refused_offer_is_a_failed_transfer(trio: Trio, refusal: Exception) -> None:
    trio.a.content, trio.b.refusal = CONTENT, refusal
    trio.request()
    assert await trio.reported() == [False]
    assert trio.a.reads == []


async def test_the_same_failure_again_and_again_is_logged_once(trio: Trio) -> None:
    """A receiver without space is tried with every heartbeat: six lines a second for hours would
    be the next full disk."""
    trio.a.content, trio.b.refusal = CONTENT, StorageFullError("no space")
    with capture_logs() as logs:
        for count in range(1, 6):
            trio.request()
            assert await trio.reported(count) == [False] * count
        trio.b.refusal = None
        trio.request()
        await trio.reported(6)
        trio.b.refusal = StorageFullError("no space")
        trio.request(NEWER)
        await trio.reported(7)
    told = [entry for entry in logs if entry["event"] == "snapshot not delivered"]
    assert len(told) == 2


async def test_a_receiver_that_refuses_us_gets_nothing(trio: Trio) -> None:
    trio.a.content, trio.b.refused = CONTENT, ["uuid-a"]
    trio.request()
    assert await trio.reported() == [False]
    assert trio.b.sinks == 0
    assert trio.b.stored == {}


class Gate:
    """Holds a transfer at its second chunk until it is opened."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, sink: Sink, data: bytes) -> None:
        if sink.stored_size_bytes:
            self.reached.set()
            await self.open.wait()

    async def at_read(self, offset_bytes: int) -> None:
        if offset_bytes:
            self.reached.set()
            await self.open.wait()

    async def wait(self) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.reached.wait()


async def test_a_second_request_of_the_same_term_is_ignored_meanwhile(trio: Trio) -> None:
    gate = Gate()
    trio.a.content, trio.b.before_append = CONTENT, gate
    trio.request()
    await gate.wait()
    trio.request()
    trio.request(term=3)
    assert trio.transports[A].stats()[B].dropped == 2
    gate.open.set()
    assert await trio.reported() == [True]
    assert len(trio.b.installed) == 1


async def test_a_request_of_a_later_term_takes_the_place(trio: Trio) -> None:
    gate = Gate()
    trio.a.content, trio.b.before_append = CONTENT, gate
    trio.request(term=4)
    await gate.wait()
    trio.request(term=6)
    gate.open.set()
    assert await trio.reported(2) == [False, True]
    assert trio.b.installed == [(A, Term(6), META, CONTENT)]
    assert trio.b.appended_size_bytes == len(CONTENT)


End = Callable[[Trio], object]


def remove(trio: Trio) -> None:
    trio.transports[A].set_peers({C: trio.addresses[C]})


def move(trio: Trio) -> None:
    trio.transports[A].set_peers({B: trio.addresses[C]})


def step_down(trio: Trio) -> None:
    trio.transports[A].cancel_snapshots()


@pytest.mark.parametrize("end", [remove, move, step_down])
@pytest.mark.parametrize("held", ["read", "append"])
async def test_a_transfer_ends_with_its_reason_to_be(trio: Trio, end: End, held: str) -> None:
    """Cancelled while a chunk is being read or stored: that ends first, then all is closed."""
    gate = Gate()
    trio.a.content = CONTENT
    if held == "read":
        trio.a.before_read = gate.at_read
    else:
        trio.b.before_append = gate
    trio.request()
    await gate.wait()
    end(trio)
    gate.open.set()
    assert await trio.reported() == [False]
    assert trio.b.cut_in_two == 0
    assert trio.b.installed == []


async def test_cancelling_before_the_first_step_is_reported_too(trio: Trio) -> None:
    trio.a.content = CONTENT
    trio.request()
    trio.transports[A].cancel_snapshots()
    assert await trio.reported() == [False]
    assert trio.a.reads == []


async def test_closing_reports_what_was_under_way(trio: Trio) -> None:
    gate = Gate()
    trio.a.content, trio.b.before_append = CONTENT, gate
    trio.request()
    await gate.wait()
    gate.open.set()
    await trio.transports[A].close()
    assert [delivered for _, _, delivered in trio.a.reports] == [False]
    trio.request()
    await asyncio.sleep(0)
    assert len(trio.a.reports) == 1
    await trio.b.until(lambda: trio.b.at_rest)


async def test_a_receiver_that_closes_ends_the_transfer(trio: Trio) -> None:
    gate = Gate()
    trio.a.content, trio.a.before_read = CONTENT, gate.at_read
    trio.request()
    await gate.wait()
    await trio.transports[B].close()
    gate.open.set()
    assert await trio.reported() == [False]


async def test_the_next_leader_takes_over_and_goes_on_where_the_first_was(trio: Trio) -> None:
    gate = Gate()
    trio.a.content, trio.a.before_read = CONTENT, gate.at_read
    trio.request(term=4, leader=A)
    await gate.wait()
    trio.handlers[C].content = CONTENT
    trio.request(term=5, leader=C)
    assert await trio.reported(leader=C) == [True]
    assert trio.b.installed == [(C, Term(5), META, CONTENT)]
    assert trio.handlers[C].reads[0] == CHUNK_SIZE_BYTES
    gate.open.set()
    assert await trio.reported(leader=A) == [False]


async def test_a_deposed_leader_does_not_push_its_successor_out(trio: Trio) -> None:
    gate = Gate()
    trio.handlers[C].content, trio.handlers[C].before_read = CONTENT, gate.at_read
    trio.request(term=5, leader=C)
    await gate.wait()
    trio.a.content = CONTENT
    trio.request(term=4, leader=A)
    await trio.a.until(lambda: len(trio.a.reports) == 1)
    gate.open.set()
    assert await trio.reported(leader=C) == [True]
    assert trio.a.reports == [(B, META, False)]


async def test_a_snapshot_that_is_being_checked_is_not_interrupted(trio: Trio) -> None:
    checking, go_on = asyncio.Event(), asyncio.Event()

    async def before_finish() -> None:
        checking.set()
        await go_on.wait()

    trio.a.content, trio.b.before_finish = CONTENT, before_finish
    trio.request(term=4, leader=A)
    async with asyncio.timeout(WAIT_S):
        await checking.wait()
    trio.handlers[C].content = CONTENT
    trio.request(term=5, leader=C)
    await trio.handlers[C].until(lambda: len(trio.handlers[C].reports) == 1)
    assert trio.handlers[C].reports == [(B, META, False)]
    go_on.set()
    assert await trio.reported() == [True]
    assert trio.b.cut_in_two == 0


async def test_a_changed_snapshot_is_not_glued_to_the_old_one(trio: Trio) -> None:
    trio.a.content = CONTENT

    async def break_off(sink: Sink, data: bytes) -> None:
        if sink.stored_size_bytes:
            trio.b.before_append = None
            raise UnavailableError("interrupted")

    trio.b.before_append = break_off
    trio.request()
    assert await trio.reported() == [False]
    trio.a.content, trio.a.meta = CONTENT[::-1], replace(NEWER)
    trio.request()
    assert await trio.reported(2) == [False, True]
    assert trio.b.installed == [(A, Term(4), NEWER, CONTENT[::-1])]


async def test_a_file_that_is_shorter_than_it_says_fails(trio: Trio) -> None:
    trio.a.content = CONTENT

    async def shorten(offset_bytes: int) -> None:
        if offset_bytes == CHUNK_SIZE_BYTES:
            outgoing_content.clear()

    outgoing_content = bytearray(CONTENT)
    trio.a.content = outgoing_content  # type: ignore[assignment]  # shrinks while it is read
    size_bytes = len(CONTENT)
    trio.a.before_read = shorten
    trio.request()
    reports = await trio.reported()
    assert reports == [False]
    assert trio.b.installed == []
    assert size_bytes == len(CONTENT)
