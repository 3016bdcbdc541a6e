"""Elections between candidates that stand at the same moment (section 5.2)."""

from __future__ import annotations

from collections.abc import Callable

from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.types import Term
from gaia_grpc.storage.memory import MemoryLog
from tests.support.cluster import Cluster, Peer, config, names

ALIKE = 6
"""Draws after which the two candidates no longer draw the same: three elections."""


def drawing(then: int) -> Callable[[int, int], int]:
    """At first the longest timeout, as the rival does, then `then` ticks less."""
    drawn = 0

    def draw(low: int, high: int) -> int:
        nonlocal drawn
        drawn += 1
        return high if drawn <= ALIKE else max(low, high - then)

    return draw


def test_b14_two_candidates_do_not_split_the_votes_for_ever() -> None:
    """5.2: "Raft uses randomized election timeouts to ensure that split votes are rare and that
    they are resolved quickly." With one peer down both candidates need each other's vote, and
    whoever keeps the timeout that it has drawn once meets its rival again in each election.
    """
    cluster = Cluster(3)
    for name, then in (("n1", 8), ("n2", 0)):
        peer = Peer(
            config(name, names(3)), MemoryLog(), cluster.wire.append, draw_timeout=drawing(then)
        )
        cluster.peers[peer.node_id] = peer
    cluster["n3"].crash()
    split = 0
    for _ in range(40 * cluster["n1"].config.election_ticks_max):
        cluster.tick()
        if all(cluster[name].node.role is RoleName.CANDIDATE for name in ("n1", "n2")):
            split = max(split, cluster["n1"].node.term)
        if cluster.leader() is not None:
            break
    leader = cluster.leader()
    assert split >= Term(1), "the votes were never split: the test shows nothing"
    assert leader is not None
    assert leader.node_id == "n1"
