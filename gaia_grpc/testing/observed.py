"""Looking at a cluster of real peers, waiting for what should come, and comparing what there is."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import grpc
from gaia.cluster.v1 import cluster_pb2

from gaia_grpc.client import Client
from gaia_grpc.errors import ConfigError, StartupError
from gaia_grpc.testing.probe import Probe
from gaia_grpc.testing.process import PeerProcess

START_TIMEOUT_S = 20.0
POLL_S = 0.02


class ObservedCluster:
    """What `Cluster` knows of its peers. Every method blocks and is bounded in time."""

    def __init__(self) -> None:
        self._peers: dict[str, PeerProcess] = {}
        self._probe = Probe()

    # --- what there is ---------------------------------------------------------------------------

    @property
    def node_ids(self) -> tuple[str, ...]:
        """All node ids, sorted as founded."""
        return tuple(self._peers)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Client addresses in the order of `node_ids`."""
        return tuple(peer.address for peer in self._peers.values())

    @property
    def answering(self) -> tuple[str, ...]:
        """Node ids of the peers that run and are not paused."""
        return tuple(node_id for node_id, peer in self._peers.items() if peer.answering)

    def peer(self, node_id: str) -> PeerProcess:
        """Process, addresses and files of one peer."""
        if node_id not in self._peers:
            raise ConfigError(f"no such peer: {node_id}")
        return self._peers[node_id]

    def address(self, node_id: str) -> str:
        """Client address of one peer."""
        return self.peer(node_id).address

    def log(self, node_id: str) -> str:
        """Everything that one peer wrote."""
        return self.peer(node_id).log()

    def logs(self) -> str:
        """The end of every peer's log, for people."""
        return "\n".join(
            f"--- {peer.node_id} (exit code {peer.exit_code}) ---\n{peer.log_tail()}"
            for peer in self._peers.values()
        )

    def client(self, **options: Any) -> Client:
        """A client that knows every peer; connect it with `async with`."""
        return Client.connect(self.addresses, **options)

    def status(self, node_id: str, *, at_index: int = 0) -> cluster_pb2.GetStatusResponse:
        """What one peer says of itself; `grpc.RpcError` where it does not answer."""
        return self._probe.status(self.address(node_id), at_index)

    def statuses(self) -> dict[str, cluster_pb2.GetStatusResponse]:
        """What each peer that answers says of itself."""
        found: dict[str, cluster_pb2.GetStatusResponse] = {}
        for node_id in self.answering:
            try:
                found[node_id] = self.status(node_id)
            except grpc.RpcError:
                continue
        return found

    # --- waiting and checking --------------------------------------------------------------------

    def wait_until(
        self, condition: Callable[[], bool], what: str, timeout: float = START_TIMEOUT_S
    ) -> None:
        """Polls until `condition` holds; `TimeoutError` with all logs where it does not."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() >= deadline:
                raise TimeoutError(f"not within {timeout:g} s: {what}\n{self.logs()}")
            time.sleep(POLL_S)

    def wait_ready(self, timeout: float = START_TIMEOUT_S) -> str:
        """Waits until every peer that runs accepts writes under one leader; returns its node id.

        Raises:
            StartupError: a peer that should run has ended, or time is up.
        """
        deadline = time.monotonic() + timeout
        expected = [node_id for node_id, peer in self._peers.items() if peer.answering]
        while time.monotonic() < deadline:
            for node_id in expected:
                peer = self._peers[node_id]
                if not peer.running:
                    raise StartupError(f"{node_id} ended: {peer.log_tail().strip()[-500:]}")
            statuses = self.statuses()
            leaders = {status.leader_id for status in statuses.values()}
            ready = len(statuses) == len(expected) and all(
                status.writable for status in statuses.values()
            )
            if ready and len(leaders) == 1 and leaders & set(expected):
                return leaders.pop()
            time.sleep(POLL_S)
        raise StartupError(f"no leader that all peers follow within {timeout:g} s")

    def leader(self, timeout: float = 10.0) -> str:
        """Node id of the peer that leads in the highest term and accepts writes."""
        deadline = time.monotonic() + timeout
        while True:
            leading = [
                (status.term, node_id)
                for node_id, status in self.statuses().items()
                if status.role == cluster_pb2.PEER_ROLE_LEADER and status.writable
            ]
            if leading:
                return max(leading)[1]
            if time.monotonic() >= deadline:
                raise TimeoutError(f"no leader within {timeout:g} s\n{self.logs()}")
            time.sleep(POLL_S)

    def follower(self, timeout: float = 10.0) -> str:
        """Node id of some answering peer that does not lead."""
        leader = self.leader(timeout)
        return next(node_id for node_id in self.answering if node_id != leader)

    def wait_applied_equal(self, timeout: float = 10.0) -> int:
        """Waits until every answering peer applied all that was committed when it was called.

        Returns:
            That index.
        """
        self.leader(timeout)
        target = max(status.commit_index for status in self.statuses().values())

        def caught_up() -> bool:
            statuses = self.statuses()
            return len(statuses) == len(self.answering) and all(
                status.applied_index >= target for status in statuses.values()
            )

        self.wait_until(caught_up, f"all peers applied index {target}", timeout)
        return target

    def assert_equal_logs_and_hashes(self, timeout: float = 10.0) -> int:
        """All answering peers have the same state hash, and the same log as far as they keep it.

        Returns:
            The index up to which they were compared.

        Raises:
            AssertionError: they differ, with the first difference.
        """
        index = self.wait_applied_equal(timeout)
        hashes = {
            node_id: self.status(node_id, at_index=index).state_hash.hex()
            for node_id in self.answering
        }
        if len(set(hashes.values())) != 1 or not all(hashes.values()):
            raise AssertionError(f"state hashes differ at index {index}: {hashes}")
        entries = {
            node_id: self._probe.entries(self.address(node_id), index) for node_id in self.answering
        }
        # Each compacts its log when it likes: what all of them still hold is compared.
        since = max((log[0][0] for log in entries.values() if log), default=0)
        first, *others = entries
        expected = [line for line in entries[first] if line[0] >= since]
        for node_id in others:
            log = [line for line in entries[node_id] if line[0] >= since]
            for ours, theirs in zip_longest(expected, log):
                if ours != theirs:
                    raise AssertionError(f"logs differ: {first} {ours}, {node_id} {theirs}")
        return index
