"""The commands of the traces in tests/raft/traces, over a cluster in memory.

Inputs: `tick n1 [count=]`, `campaign n1`, `propose n1 x y`, `read n1 7`, `transfer n1 to=n2`,
`lost n2 peer=n1`, `unreachable n1 peer=n2`, `step-down n1`, `configure n1 n1,n2,n3+n4` (learners
after the plus), `compact n1 [keep=]`, `join n4` (an empty peer), `sent n1 peer=n2 [failed]` (how a
transfer of a snapshot ended). The disk: `persist n1 [count=]`, `crash n1 [survive=1]`, `restart
n1`. The network: `deliver [from=] [to=] [kind=] [drop|twice|last]`, `isolate n1`, `cut n1 n2`,
`heal`, `wire`. All at once: `stabilize` (no time passes, and transfers are reported). To look:
`status`, `log n1`, `progress n1`.
`cluster peers=3 [n1=1,1,2 ...] [term=3] [commit=2] [max_entries=]` begins; each list holds the
terms of the entries that a peer has stored.

Every peer takes its effects after each command, but a write stays under way until `persist`.
"""

from __future__ import annotations

from collections.abc import Callable

from gaia_grpc.errors import GaiaError
from gaia_grpc.raft.effects import Effects, ReadId, RoleChange
from gaia_grpc.raft.messages import (
    AppendRequest,
    AppendResponse,
    Envelope,
    PreVoteRequest,
    PreVoteResponse,
    SnapshotRequest,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from gaia_grpc.raft.types import Entry, NodeId, SnapshotMeta, WriteBatch
from gaia_grpc.storage.memory import MemoryLog
from tests.support.cluster import Cluster, Peer, make_config, names, restored
from tests.support.datadriven import Command, TraceError


def show_entries(entries: tuple[Entry, ...]) -> str:
    if not entries:
        return "none"
    first, last = entries[0], entries[-1]
    name = f"{first.term}/{first.index}"
    return name if first is last else f"{name}..{last.term}/{last.index}"


def show_message(envelope: Envelope) -> str:
    term, payload = envelope.term, envelope.payload
    match payload:
        case PreVoteRequest():
            return f"PreVote term={term} last={payload.last_term}/{payload.last_index}"
        case VoteRequest():
            by_transfer = " transfer" if payload.leadership_transfer else ""
            return f"Vote term={term} last={payload.last_term}/{payload.last_index}{by_transfer}"
        case PreVoteResponse():
            return f"PreVoteAnswer term={term} {'granted' if payload.granted else 'refused'}"
        case VoteResponse():
            return f"VoteAnswer term={term} {'granted' if payload.granted else 'refused'}"
        case AppendRequest():
            return (
                f"Append term={term} after={payload.previous_term}/{payload.previous_index} "
                f"entries={show_entries(payload.entries)} commit={payload.commit_index} "
                f"round={payload.round}"
            )
        case AppendResponse(success=True):
            return f"AppendAnswer term={term} match={payload.match_index} round={payload.round}"
        case AppendResponse():
            return (
                f"AppendAnswer term={term} refused={payload.rejected_index} "
                f"hint={payload.hint_term}/{payload.hint_index} round={payload.round}"
            )
        case TimeoutNow():
            return f"TimeoutNow term={term}"
        case SnapshotRequest():
            return f"Snapshot term={term} {show_snapshot(payload.meta)}"


def show_snapshot(meta: SnapshotMeta) -> str:
    return f"{meta.term}/{meta.index} members={meta.configuration.decode() or '-'}"


def show_write(write: WriteBatch) -> str:
    text = f"write {write.write_number}:"
    if write.hard_state is not None:
        state = write.hard_state
        text += f" term={state.term} vote={state.voted_for or '-'} commit={state.commit_index}"
    if write.snapshot is not None:
        text += f" snapshot={show_snapshot(write.snapshot)}"
    return f"{text} entries={show_entries(write.entries)}" if write.entries else text


def show_role(change: RoleChange) -> str:
    led = f" of {change.leader_id}" if change.leader_id and change.role == "follower" else ""
    return f"{change.role}{led} in term {change.term}"


class TraceCluster:
    """Interprets one trace file."""

    def __init__(self) -> None:
        self.cluster = Cluster(1)
        self.printed: list[str] = []
        self.commands: dict[str, Callable[[Command], None]] = {
            "cluster": self.begin,
            "tick": self.tick,
            "campaign": self.campaign,
            "propose": self.propose,
            "read": self.read,
            "transfer": self.transfer,
            "lost": self.lost,
            "step-down": self.step_down,
            "configure": self.configure,
            "compact": self.compact,
            "join": self.join,
            "sent": self.sent,
            "progress": self.progress,
            "unreachable": self.unreachable,
            "persist": self.persist,
            "crash": self.crash,
            "restart": self.restart,
            "deliver": self.deliver,
            "isolate": self.isolate,
            "cut": self.cut,
            "heal": self.heal,
            "wire": self.show_wire,
            "stabilize": self.stabilize,
            "status": self.status,
            "log": self.show_log,
        }

    def interpret(self, command: Command) -> list[str]:
        self.printed = []
        if command.name not in self.commands:
            raise TraceError(f"line {command.line}: unknown command {command.name!r}")
        try:
            self.commands[command.name](command)
        except GaiaError as error:
            self.printed.append(f"{type(error).__name__}: {error.message}")
        for peer in self.cluster.peers.values():
            self._take(peer)
        return self.printed or ["ok"]

    # --- inputs ----------------------------------------------------------------------------------

    def begin(self, command: Command) -> None:
        voters = names(command.number("peers", 3))
        term, commit = command.number("term", 0), command.number("commit", 0)
        max_entries = command.number("max_entries", 64)
        max_inflight = command.number("max_inflight", 8)
        max_partial = command.number("max_partial", 1 << 20)
        self.cluster = Cluster(len(voters))
        for name in voters:
            terms = [int(each) for each in command.text_value(name).split(",") if each]
            stored = restored(*terms, term=max([term, *terms]), commit=min(commit, len(terms)))
            self.cluster.peers[name] = Peer(
                make_config(
                    name,
                    voters,
                    max_entries=max_entries,
                    max_inflight=max_inflight,
                    max_partial=max_partial,
                ),
                MemoryLog(stored),
                self._send(name),
            )

    def _send(self, name: NodeId) -> Callable[[Envelope], None]:
        def send(envelope: Envelope) -> None:
            self.printed.append(f"{name} -> {envelope.to_node}  {show_message(envelope)}")
            self.cluster.wire.append(envelope)

        return send

    def _peer(self, command: Command) -> Peer:
        return self.cluster[command.word()]

    def tick(self, command: Command) -> None:
        peer = self._peer(command)
        for _ in range(command.number("count", 1)):
            peer.node.tick()
            self._take(peer)

    def campaign(self, command: Command) -> None:
        peer = self._peer(command)
        before = len(peer.role_changes)
        for _ in range(peer.config.election_ticks_max):
            peer.node.tick()
            self._take(peer)
            if len(peer.role_changes) > before:
                return

    def propose(self, command: Command) -> None:
        peer = self._peer(command)
        data = [word.encode() for word in command.words]
        command.words.clear()
        for where in peer.node.propose(data):
            self.printed.append(f"{peer.node_id} proposes {where.term}/{where.index}")

    def read(self, command: Command) -> None:
        peer = self._peer(command)
        peer.node.request_read(ReadId(peer.node_id, 1, int(command.word())))

    def transfer(self, command: Command) -> None:
        self._peer(command).node.transfer(NodeId(command.text_value("to")))

    def lost(self, command: Command) -> None:
        node = self._peer(command).node
        node.peer_lost(NodeId(command.text_value("peer")), node.term)

    def unreachable(self, command: Command) -> None:
        self._peer(command).node.report_unreachable(NodeId(command.text_value("peer")))

    def step_down(self, command: Command) -> None:
        self._peer(command).node.step_down()

    def configure(self, command: Command) -> None:
        peer = self._peer(command)
        where = peer.node.propose_configuration(command.word().encode())
        self.printed.append(f"{peer.node_id} proposes {where.term}/{where.index}")

    def compact(self, command: Command) -> None:
        peer = self._peer(command)
        base = peer.compact(command.number("keep", 0))
        snapshot = peer.node.snapshot
        assert snapshot is not None
        self.printed.append(
            f"{peer.node_id} has a snapshot {show_snapshot(snapshot)}, "
            f"its log begins after {base.term}/{base.index}"
        )

    def join(self, command: Command) -> None:
        name = NodeId(command.word())
        self.cluster.peers[name] = Peer(make_config(name, ()), MemoryLog(), self._send(name))
        self._status(self.cluster.peers[name])

    def sent(self, command: Command) -> None:
        peer = self._peer(command)
        peer.node.report_snapshot(NodeId(command.text_value("peer")), not command.flag("failed"))

    def progress(self, command: Command) -> None:
        node = self._peer(command).node
        for name in sorted(node.members.voters + node.members.learners):
            known = node.progress(name)
            if known is not None:
                self.printed.append(
                    f"{name} {known.state} match={known.match_index} next={known.next_index} "
                    f"inflight={known.inflight}"
                )

    # --- the disk --------------------------------------------------------------------------------

    def persist(self, command: Command) -> None:
        peer = self._peer(command)
        for _ in range(command.number("count", 1)):
            if not peer.pending:
                self.printed.append(f"{peer.node_id} has no write under way")
                return
            self._persist(peer)

    def crash(self, command: Command) -> None:
        peer = self._peer(command)
        survive = command.number("survive", 0)
        lost = len(peer.pending) - peer.crash(lambda low, high: min(high, survive))
        self.printed.append(f"{peer.node_id} is down, {lost} writes lost")

    def restart(self, command: Command) -> None:
        peer = self._peer(command)
        peer.start()
        self._status(peer)

    # --- the network -----------------------------------------------------------------------------

    def _wanted(self, command: Command) -> list[Envelope]:
        sender, receiver = command.text_value("from"), command.text_value("to")
        kind = command.text_value("kind")
        return [
            envelope
            for envelope in self.cluster.wire
            if sender in ("", envelope.from_node)
            and receiver in ("", envelope.to_node)
            and kind in ("", show_message(envelope).split()[0])
        ]

    def deliver(self, command: Command) -> None:
        drop, twice, keep = command.flag("drop"), command.flag("twice"), command.flag("keep")
        wanted = self._wanted(command)
        for envelope in wanted[-1:] if command.flag("last") else wanted:
            if not keep:
                self.cluster.wire.remove(envelope)
            if drop:
                self.printed.append(f"dropped: {self._on_wire(envelope)}")
                continue
            for _ in range(2 if twice else 1):
                self._deliver(envelope)

    def _deliver(self, envelope: Envelope) -> None:
        if not self.cluster.hand_over(envelope, report=False):
            self.printed.append(f"lost: {self._on_wire(envelope)}")
            return
        peer = self.cluster.peers[envelope.to_node]
        self.printed.append(f"{peer.node_id} <- {envelope.from_node}  {show_message(envelope)}")
        self._take(peer)

    def _on_wire(self, envelope: Envelope) -> str:
        return f"{envelope.from_node} -> {envelope.to_node}  {show_message(envelope)}"

    def isolate(self, command: Command) -> None:
        self.cluster.isolate(command.word())

    def cut(self, command: Command) -> None:
        self.cluster.cut(command.word(), command.word())

    def heal(self, command: Command) -> None:
        self.cluster.heal()

    def show_wire(self, command: Command) -> None:
        self.printed += [self._on_wire(envelope) for envelope in self.cluster.wire]

    def stabilize(self, command: Command) -> None:
        quiet = command.flag("quiet")
        kept, self.printed = self.printed, []
        for _ in range(200):
            for peer in self.cluster.peers.values():
                while peer.is_up and peer.pending:
                    self._persist(peer)
                    self._take(peer)
            if not self.cluster.wire and not any(p.pending for p in self.cluster.peers.values()):
                break
            now, self.cluster.wire[:] = list(self.cluster.wire), []
            for envelope in now:
                self._deliver(envelope)
                self.cluster.report_snapshot(envelope)
                self._take(self.cluster.peers[envelope.from_node])
        self.printed = kept if quiet else kept + self.printed

    # --- to look ---------------------------------------------------------------------------------

    def status(self, command: Command) -> None:
        chosen = [self._peer(command)] if command.words else list(self.cluster.peers.values())
        for peer in chosen:
            self._status(peer)

    def _status(self, peer: Peer) -> None:
        if not peer.is_up:
            self.printed.append(f"{peer.node_id} is down")
            return
        node = peer.node
        ready = " ready" if node.is_ready_leader else ""
        self.printed.append(
            f"{peer.node_id} {node.role}{ready} term={node.term} vote={node.voted_for or '-'} "
            f"leader={node.leader_id or '-'} last={node.last_term}/{node.last_index} "
            f"durable={node.durable_index} commit={node.commit_index}"
        )

    def show_log(self, command: Command) -> None:
        node = self._peer(command).node
        self.printed += [
            f"{each.term}/{each.index} {each.kind.name.lower()} {each.data.decode()}".rstrip()
            for each in node.entries(node.first_index, node.last_index)
        ]

    # --- inside ----------------------------------------------------------------------------------

    def _take(self, peer: Peer) -> None:
        if peer.is_up and peer.node.has_effects:
            before, self.printed = self.printed, []
            effects = peer.take()
            sent, self.printed = self.printed, before
            self._show(peer, effects, sent)

    def _persist(self, peer: Peer) -> None:
        self.printed.append(f"{peer.node_id} has written {peer.pending[0][0].write_number}")
        peer.persist()

    def _show(self, peer: Peer, effects: Effects, sent: list[str]) -> None:
        name = peer.node_id
        if effects.role_change is not None:
            self.printed.append(f"{name} is {show_role(effects.role_change)}")
        self.printed += sent
        if effects.write is not None:
            waiting = len(effects.messages_after_write)
            after = f", then {waiting} messages" if waiting else ""
            self.printed.append(f"{name} owes {show_write(effects.write)}{after}")
        if effects.install is not None:
            self.printed.append(f"{name} installs {show_snapshot(effects.install)}")
        if effects.configuration is not None:
            members = effects.configuration.decode()
            self.printed.append(f"{name} knows the members {members or 'of the start'}")
        for each in effects.committed:
            self.printed.append(f"{name} applies {each.term}/{each.index} {each.data.decode()}")
        for grant in effects.read_grants:
            self.printed.append(f"{name} grants read {grant.read_id.counter} at {grant.index}")
        for read_id in effects.reads_dropped:
            self.printed.append(f"{name} drops read {read_id.counter}")
