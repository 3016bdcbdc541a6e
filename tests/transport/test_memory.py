"""The twins of the network: what gets through, in which order, and what a caller learns."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random

import pytest

from gaia_grpc.errors import InvariantError, OutcomeUnknownError, UnavailableError
from gaia_grpc.raft.messages import Envelope, SnapshotRequest, VoteRequest, VoteResponse
from gaia_grpc.raft.types import Index, NodeId, Term
from gaia_grpc.transport.api import (
    AppliedCommand,
    ForwardedCall,
    ForwardedOutcome,
    Hello,
    IdentifyRequest,
    IdentifyResponse,
    InboundHandler,
    PeerTransport,
)
from gaia_grpc.transport.memory import MemoryHub, MemoryNetwork, MemoryTransport, NetworkFaults
from tests.transport.snapshots import META, Snapshots

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")


def message(number: int = 1, from_node: NodeId = N1, to_node: NodeId = N2) -> Envelope:
    return Envelope(from_node, to_node, Term(number), VoteResponse(True))


def network(seed: int = 0, **faults: float) -> MemoryNetwork:
    whole = {key: int(value) for key, value in faults.items() if key.startswith("delay")}
    rates = {key: value for key, value in faults.items() if not key.startswith("delay")}
    return MemoryNetwork(
        Random(seed),
        NetworkFaults(
            loss=rates.get("loss", 0.0),
            duplicate=rates.get("duplicate", 0.0),
            delay_ticks_min=whole.get("delay_min", 0),
            delay_ticks_max=whole.get("delay_max", 0),
        ),
    )


# --- MemoryNetwork ---------------------------------------------------------------------------


def test_without_faults_everything_arrives_in_order() -> None:
    net = network()
    sent = [message(number) for number in range(1, 50)]
    for each in sent:
        net.send(each)
    assert net.has_due
    assert net.take_due() == sent
    assert not net.has_due


def test_loss_and_duplication_happen_and_are_counted() -> None:
    net = network(loss=0.3, duplicate=0.3)
    for number in range(1, 501):
        net.send(message(number))
    arrived = net.take_due()
    assert len(arrived) == 500 - net.counts["lost"] + net.counts["duplicated"]
    assert 100 < net.counts["lost"] < 200
    assert 60 < net.counts["duplicated"] < 150


def test_delay_holds_back_and_reorders() -> None:
    net = network(delay_min=2, delay_max=9)
    sent = [message(number) for number in range(1, 50)]
    for each in sent:
        net.send(each)
    net.advance(1)
    assert net.take_due() == []
    net.advance(8)
    arrived = net.take_due()
    assert arrived != sent
    assert sorted(arrived, key=lambda each: each.term) == sent


def test_a_cut_has_one_direction_and_stops_what_is_under_way() -> None:
    net = network()
    net.send(message(1))
    net.cut(N1, N2)
    net.send(message(2, N2, N1))
    assert net.take_due() == [message(2, N2, N1)]
    assert net.counts["cut"] == 1
    net.heal()
    net.send(message(3))
    assert net.take_due() == [message(3)]


def test_isolation_cuts_both_directions_to_all_others() -> None:
    net = network()
    net.isolate(N1, [N1, N2, N3])
    assert not net.connected(N1, N2)
    assert not net.connected(N3, N1)
    assert net.connected(N2, N3)


def test_a_seed_gives_the_same_run() -> None:
    def run(seed: int) -> list[Envelope]:
        net = network(seed, loss=0.2, duplicate=0.2, delay_max=5)
        arrived = []
        for number in range(1, 100):
            net.send(message(number))
            net.advance()
            arrived += net.take_due()
        return arrived

    assert run(1) == run(1)
    assert run(1) != run(2)


# --- MemoryTransport ---------------------------------------------------------------------------


class Listener(Snapshots):
    """An `InboundHandler` that keeps what it hears."""

    def __init__(self, node_id: NodeId) -> None:
        super().__init__()
        self.node_id = node_id
        self.heard: list[Envelope] = []
        self.hellos: list[Hello] = []
        self.refused: str | None = None
        self.answer: asyncio.Future[ForwardedOutcome] = asyncio.get_running_loop().create_future()

    def hello(self, peer: NodeId) -> Hello:
        return Hello("c1", self.node_id, "uuid", peer, "uuid")

    def accepts(self, hello: Hello) -> str | None:
        return self.refused

    def on_hello(self, hello: Hello) -> None:
        self.hellos.append(hello)

    def on_message(self, envelope: Envelope) -> None:
        self.heard.append(envelope)

    def on_stream_broken(self, peer: NodeId) -> None:
        raise AssertionError("no streams here")

    def on_leader_gone(self, peer: NodeId, term: Term) -> None:
        raise AssertionError("no streams here")

    async def on_forward(self, call: ForwardedCall) -> ForwardedOutcome:
        return await self.answer

    def on_identify(self, request: IdentifyRequest) -> IdentifyResponse:
        return IdentifyResponse(self.node_id, "uuid", "", empty=True, bootstrapping=False)


class Pair:
    """Two transports on one hub."""

    def __init__(self, hub: MemoryHub) -> None:
        self.hub = hub
        self.one: PeerTransport = hub.transport(N1)
        self.other: PeerTransport = hub.transport(N2)
        self.at_one, self.at_other = Listener(N1), Listener(N2)

    async def start(self) -> None:
        one: InboundHandler = self.at_one
        await self.one.start(one)
        await self.other.start(self.at_other)


@pytest.fixture
async def pair() -> Pair:
    made = Pair(MemoryHub(network()))
    await made.start()
    return made


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


COMMAND = ForwardedCall(b"command", 1000)
READ = ForwardedCall(None, 1000)
DONE = AppliedCommand(Term(1), Index(1), b"done")
ASK = IdentifyRequest(N1, "uuid")


async def test_messages_arrive_in_a_later_turn_and_are_counted(pair: Pair) -> None:
    pair.one.send(message(1))
    pair.one.send(message(2))
    assert pair.at_other.heard == []
    await turns()
    assert pair.at_other.heard == [message(1), message(2)]
    assert pair.one.stats()[N2].sent == 2
    assert pair.other.stats()[N1].received == 2


async def test_delayed_messages_wait_for_the_clock(pair: Pair) -> None:
    pair.hub.network.faults = NetworkFaults(delay_ticks_min=2, delay_ticks_max=2)
    pair.one.send(message(1))
    await turns()
    assert pair.at_other.heard == []
    pair.hub.advance(2)
    await turns()
    assert pair.at_other.heard == [message(1)]


async def test_a_refused_speaker_is_not_heard(pair: Pair) -> None:
    pair.at_other.refused = "another cluster"
    pair.one.send(message(1))
    await turns()
    assert pair.at_other.heard == []
    assert pair.other.stats()[N1].refused == 1


async def test_messages_to_a_closed_peer_are_dropped(pair: Pair) -> None:
    await pair.other.close()
    await pair.other.close()
    pair.one.send(message(1))
    await turns()
    assert pair.one.stats()[N2].dropped == 1


async def test_nobody_speaks_for_another(pair: Pair) -> None:
    with pytest.raises(InvariantError):
        pair.one.send(message(1, N3, N2))


async def test_forward_brings_the_outcome(pair: Pair) -> None:
    pair.at_other.answer.set_result(DONE)
    assert await pair.one.forward(N2, COMMAND, 1.0) == DONE


async def test_forward_to_a_peer_out_of_reach_was_not_applied(pair: Pair) -> None:
    pair.hub.network.cut(N1, N2)
    with pytest.raises(UnavailableError, match="can't be reached"):
        await pair.one.forward(N2, COMMAND, 1.0)
    with pytest.raises(UnavailableError):
        await pair.one.identify(N3, ASK, 1.0)


async def test_forward_whose_answer_is_lost_has_an_unknown_outcome(pair: Pair) -> None:
    pair.at_other.answer.set_result(DONE)
    pair.hub.network.cut(N2, N1)
    with pytest.raises(OutcomeUnknownError):
        await pair.one.forward(N2, COMMAND, 1.0)
    with pytest.raises(UnavailableError):
        await pair.one.forward(N2, READ, 1.0)
    with pytest.raises(UnavailableError):
        await pair.one.identify(N2, ASK, 1.0)


async def test_forward_that_takes_too_long_has_an_unknown_outcome(pair: Pair) -> None:
    with pytest.raises(OutcomeUnknownError):
        await pair.one.forward(N2, COMMAND, 0.001)


async def test_identify_asks_who_is_there(pair: Pair) -> None:
    assert (await pair.one.identify(N2, ASK, 1.0)).node_id == N2


async def test_both_sides_are_introduced_once(pair: Pair) -> None:
    pair.one.send(message(1))
    pair.one.send(message(2))
    await turns()
    assert pair.at_other.hellos == [pair.at_one.hello(N2)]
    assert pair.at_one.hellos == [pair.at_other.hello(N1)]


async def test_only_members_get_requests_and_everybody_answers(pair: Pair) -> None:
    request = Envelope(N1, N2, Term(1), VoteRequest(Index(1), Term(1)))
    pair.one.set_peers({N3: "c:1"})
    pair.one.send(request)
    pair.one.send(message(1))
    await turns()
    assert pair.at_other.heard == [message(1)]
    assert pair.one.stats()[N2].dropped == 1
    with pytest.raises(UnavailableError):
        await pair.one.forward(N2, COMMAND, 1.0)
    pair.one.set_peers({N2: "b:1"})
    pair.one.send(request)
    await turns()
    assert pair.at_other.heard[-1] == request


async def test_a_peer_with_an_address_is_found_only_there(pair: Pair) -> None:
    moved = pair.hub.transport(N3, "c:2")
    await moved.start(Listener(N3))
    with pytest.raises(UnavailableError):
        await pair.one.identify_at("c:1", ASK, 1.0)
    assert (await pair.one.identify_at("c:2", ASK, 1.0)).node_id == N3
    pair.one.set_peers({N3: "c:1"})
    with pytest.raises(UnavailableError):
        await pair.one.identify(N3, ASK, 1.0)
    pair.one.set_peers({N3: "c:2"})
    assert (await pair.one.identify(N3, ASK, 1.0)).node_id == N3


# --- snapshots -------------------------------------------------------------------------------


def snapshot_request(term: int = 1) -> Envelope:
    return Envelope(N1, N2, Term(term), SnapshotRequest(META))


def test_a_snapshot_as_one_message_has_its_own_faults_and_its_end_is_told() -> None:
    net = MemoryNetwork(
        Random(3),
        NetworkFaults(loss=1.0, snapshot_loss=0.3, snapshot_duplicate=0.3,
                      snapshot_delay_ticks_min=2, snapshot_delay_ticks_max=4),
    )  # fmt: skip
    for _ in range(100):
        net.send(snapshot_request())
    net.send(message())
    assert net.take_due() == []
    lost = net.take_snapshot_ends()
    assert {delivered for _, delivered in lost} == {False}
    assert 15 < len(lost) < 45
    net.advance(4)
    arrived = net.take_due()
    assert len(arrived) == 100 - len(lost) + net.counts["duplicated"]
    assert net.take_snapshot_ends() == [(each, True) for each in arrived]
    net.faults = NetworkFaults()
    net.send(snapshot_request())
    net.cut(N1, N2)
    assert net.take_due() == []
    assert net.take_snapshot_ends() == [(snapshot_request(), False)]
    assert net.take_snapshot_ends() == []


def test_faults_of_snapshots_leave_the_luck_of_other_messages_alone() -> None:
    def run(faults: NetworkFaults) -> list[Envelope]:
        net = MemoryNetwork(Random(9), faults)
        for number in range(1, 100):
            net.send(message(number))
        net.advance(9)
        return net.take_due()

    plain = NetworkFaults(loss=0.2, duplicate=0.2, delay_ticks_max=5)
    assert run(plain) == run(replace(plain, snapshot_loss=1.0, snapshot_delay_ticks_max=7))


async def ended(pair: Pair, count: int) -> list[bool]:
    """Lets ticks pass until so many transfers have been reported."""
    async with asyncio.timeout(10):
        while len(pair.at_one.reports) < count:
            pair.hub.advance()
            await turns()
    return [delivered for _, _, delivered in pair.at_one.reports]


async def test_transfers_survive_lost_doubled_and_late_chunks(pair: Pair) -> None:
    one = pair.one
    assert isinstance(one, MemoryTransport)
    one.chunk_size_bytes = 10
    pair.at_one.content = Random(4).randbytes(305)
    pair.hub.network.faults = NetworkFaults(
        snapshot_loss=0.1, snapshot_duplicate=0.1, snapshot_delay_ticks_max=3
    )
    turn = 0
    while not pair.at_other.installed:
        turn += 1
        one.send(snapshot_request())
        await ended(pair, turn)
    assert turn > 1
    assert pair.at_one.reports[-1][2]
    assert pair.at_other.installed == [(N1, 1, META, pair.at_one.content)]
    assert pair.at_other.appended_size_bytes == 305
    assert pair.at_one.at_rest
    assert pair.at_other.at_rest


async def test_a_cut_breaks_a_transfer_also_where_only_the_answer_is_lost(pair: Pair) -> None:
    pair.at_one.content = b"content"
    pair.hub.network.cut(N2, N1)
    pair.one.send(snapshot_request())
    assert await ended(pair, 1) == [False]
    pair.hub.network.heal()
    pair.one.send(snapshot_request())
    assert await ended(pair, 2) == [False, True]


async def test_a_late_transfer_lets_go_at_once_when_a_newer_one_begins(pair: Pair) -> None:
    third = pair.hub.transport(N3)
    leader = Listener(N3)
    await third.start(leader)
    pair.at_one.content = leader.content = b"content"
    pair.hub.network.faults = NetworkFaults(snapshot_delay_ticks_min=1000)
    pair.one.send(snapshot_request(1))
    while not pair.hub._waiting:  # until its chunk is on the way
        await turns(1)
    pair.hub.network.faults = NetworkFaults()
    third.send(Envelope(N3, N2, Term(2), SnapshotRequest(META)))
    await turns(30)
    assert pair.at_other.installed == [(N3, 2, META, b"content")]
    assert [delivered for _, _, delivered in pair.at_one.reports] == [False]
    await third.close()
