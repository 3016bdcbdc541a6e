"""Clients with sessions: they repeat what has no answer, and read what must be current."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gaia_grpc.errors import NotLeaderError
from gaia_grpc.raft.effects import ReadId
from gaia_grpc.raft.types import Entry, EntryId, Term
from tests.sim.machine import command
from tests.sim.peer import SimPeer
from tests.support.checkers import require

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

PATIENCE_TURNS = 30
KEYS = ("a", "b", "c")


@dataclass(slots=True)
class Request:
    """It keeps its serial through all attempts."""

    client: Client
    kind: str
    session: int
    serial: int
    key: str
    amount: int
    attempts: int = 0
    answered: bool = False
    first_term: Term = Term(0)


@dataclass(slots=True)
class Client:
    """At most one request at a time, as a session demands."""

    number: int
    session: int = 0
    serial: int = 0
    request: Request | None = None
    waits_until: int = 0


@dataclass(slots=True)
class Read:
    """A linearizable read; `floor` is what was committed anywhere when it was asked."""

    read_id: ReadId
    key: str
    floor: int
    index: int = 0


class Clients:
    """All clients, and what each peer owes them."""

    def __init__(self, world: Simulation, count: int) -> None:
        self._world = world
        self._clients = [Client(number) for number in range(count)]
        self._expected: dict[tuple[str, int, EntryId], Request] = {}
        self._reads: dict[ReadId, Read] = {}
        self._granted: dict[str, list[Read]] = {}
        self._number_of_reads = 0
        self.stopping = False
        """Only what is pending goes on."""

    @property
    def pending(self) -> int:
        """Requests without an answer."""
        return sum(client.request is not None for client in self._clients)

    # --- what they do -----------------------------------------------------------------------------

    def run(self) -> None:
        """One turn."""
        world = self._world
        for client in self._clients:
            if client.request is None:
                if self.stopping or not world.chance(world.options.ask):
                    continue
                client.request = self._new_request(client)
                client.waits_until = 0
            if client.waits_until <= world.now:
                self._attempt(client, client.request)
        leaders = [peer for peer in world.running() if peer.is_leader]
        if leaders and not self.stopping:
            for each in leaders if len(leaders) > 1 else ():
                self._read(each)  # one of them is not current
            if world.chance(world.options.read):
                self._read(world.random.choice(leaders))
        for each in leaders:  # also one that is cut off: its log gets long in vain
            if world.chance(world.options.burst) and not world.is_full(each):
                for _ in range(world.random.randint(1, 4)):
                    self._propose_noop(each)
                world.after(each)

    def _new_request(self, client: Client) -> Request:
        random = self._world.random
        if not client.session:
            return Request(client, "open", 0, 0, "-", 0)
        client.serial += 1
        key, amount = random.choice(KEYS), random.randint(1, 9)
        return Request(client, "add", client.session, client.serial, key, amount)

    def _attempt(self, client: Client, request: Request) -> None:
        world = self._world
        if request.attempts and world.random.random() < 0.05 and not self.stopping:
            client.request = None  # given up: it may still be done, but never twice
            world.counts["requests_given_up"] += 1
            return
        peer = self._some_peer()
        if peer is None:
            return
        data = command(
            request.kind, request.session, request.serial, request.key, request.amount,
            peer.wall_ms(world.now),
        )  # fmt: skip
        try:
            (entry_id,) = peer.node.propose([data])
        except NotLeaderError:
            return
        key = (peer.identity, peer.boots, entry_id)
        require(key not in self._expected, f"{entry_id} was given away twice")
        self._expected[key] = request
        world.counts["proposed"] += 1
        world.counts["repeated"] += request.attempts > 0
        request.attempts += 1
        request.first_term = request.first_term or entry_id.term
        client.waits_until = world.now + PATIENCE_TURNS
        world.after(peer)

    def _propose_noop(self, peer: SimPeer) -> None:
        try:
            propose_noop(peer, self._world.now)
        except NotLeaderError:
            return
        self._world.counts["proposed"] += 1

    def _some_peer(self) -> SimPeer | None:
        """Who claims to lead, also one that was deposed and does not know; full disks refuse."""
        world = self._world
        running = [peer for peer in world.running() if not world.is_full(peer)]
        leaders = [peer for peer in running if peer.is_leader]
        if leaders:
            return world.random.choice(leaders)
        return None

    # --- answers ----------------------------------------------------------------------------------

    def on_applied(self, peer: SimPeer, entry: Entry, answer: str) -> None:
        """The peer that proposed an entry has applied it: it answers."""
        world = self._world
        entry_id = EntryId(entry.term, entry.index)
        request = self._expected.pop((peer.identity, peer.boots, entry_id), None)
        if request is None:
            return
        if world.chance(world.options.lost_replies):
            world.counts["replies_lost"] += 1
            return
        world.counts["answers"] += 1
        client = request.client
        if request.kind == "add" and answer not in ("ended", "old"):
            known = world.oracle.done.get((request.session, request.serial))
            require(known is not None and known[1] == answer, f"a wrong answer: {answer}")
            if known is not None and known[0] < entry.index:
                world.counts["answered_again"] += 1
                world.counts["answered_again_in_another_term"] += request.first_term < entry.term
        if client.request is not request:
            return  # given up, or answered before
        request.answered = True
        client.request = None
        if request.kind == "open":
            client.session, client.serial = int(entry.index), 0
        elif answer == "ended":
            world.counts["session_opened_again"] += 1
            client.session = 0

    def on_crash(self, peer: SimPeer, durable_index: int) -> None:
        """Nobody answers any more."""
        gone = [key for key in self._expected if key[:2] == (peer.identity, peer.boots)]
        for key in gone:
            self._world.counts["crashed_between_sync_and_answer"] += key[2].index <= durable_index
            del self._expected[key]
        for read_id in [each for each in self._reads if each.peer_uuid == peer.identity]:
            del self._reads[read_id]
        self._granted.pop(peer.identity, None)

    # --- reads ------------------------------------------------------------------------------------

    def _read(self, peer: SimPeer) -> None:
        world = self._world
        self._number_of_reads += 1
        read_id = ReadId(peer.identity, peer.boots, self._number_of_reads)
        peer.node.request_read(read_id)
        floor = len(world.books.committed)
        self._reads[read_id] = Read(read_id, world.random.choice(KEYS), floor)
        world.after(peer)

    def on_read_dropped(self, read_id: ReadId) -> None:
        """It must be asked again."""
        self._world.counts["reads_dropped"] += 1
        self._reads.pop(read_id, None)

    def serve_reads(self, peer: SimPeer) -> None:
        """Answers what was granted, from the peer's own state, once that has come far enough."""
        world = self._world
        waiting = self._granted.setdefault(peer.identity, [])
        for grant in peer.grants:
            read = self._reads.pop(grant.read_id)
            require(grant.index >= read.floor, f"a stale read: {grant.index} < {read.floor}")
            read.index = int(grant.index)
            waiting.append(read)
        peer.grants.clear()
        if peer.holding:
            return
        ready = [read for read in waiting if read.index <= peer.machine.index]
        for read in ready:
            waiting.remove(read)
            value = peer.machine.counters.get(read.key, 0)
            right = world.oracle.value_at(read.key, peer.machine.index)
            require(value == right, f"{peer.identity} read {read.key}={value}, is {right}")
            world.counts["reads_checked"] += 1


def propose_noop(peer: SimPeer, now: int) -> EntryId:
    """A command that changes nothing; raises `NotLeaderError`."""
    (entry_id,) = peer.node.propose([command("add", 0, 0, "-", 0, peer.wall_ms(now))])
    return entry_id
