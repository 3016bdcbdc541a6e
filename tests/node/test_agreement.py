"""Peers compare their states all the time; one that differs does not go on (faults B18, B27)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from gaia_grpc.errors import InvariantError
from gaia_grpc.node.applier import Applier
from gaia_grpc.node.topics import TopicBoard
from gaia_grpc.raft.messages import AppendRequest, Envelope, StateChecksum, TimeoutNow
from gaia_grpc.raft.types import EntryKind, Index, NodeId, Term
from gaia_grpc.state.machine import StateMachine
from tests.support.local_cluster import LocalCluster, change_setting, engine_of, running

N1, N2 = NodeId("n1"), NodeId("n2")


def heartbeat(checksum: StateChecksum | None) -> Envelope:
    return Envelope(N1, N2, Term(1), AppendRequest(Index(0), Term(0), (), Index(0), 1, checksum))


def applier() -> Applier:
    machine = StateMachine()
    machine.apply(1, EntryKind.NOOP, b"")
    return Applier(machine, TopicBoard())


def test_equal_state_unknown_index_and_other_messages_pass() -> None:
    mine = applier()
    checksum = mine.checksum()
    assert checksum is not None
    passed = [
        heartbeat(None),
        heartbeat(checksum),
        heartbeat(replace(checksum, index=Index(2))),
        Envelope(N1, N2, Term(1), TimeoutNow()),
    ]
    for envelope in passed:
        assert mine.checked(envelope) is envelope


def test_other_state_at_the_same_index_is_refused() -> None:
    with pytest.raises(InvariantError, match="state after entry 1 differs from that of n1"):
        applier().checked(heartbeat(StateChecksum(Index(1), b"another")))


def test_nothing_applied_is_nothing_to_tell() -> None:
    assert Applier(StateMachine(), TopicBoard()).checksum() is None


async def test_follower_whose_state_went_wrong_stops_and_the_others_go_on(tmp_path: Path) -> None:
    """One bit of memory, or an apply that depends on more than the log."""
    async with running(LocalCluster(tmp_path)) as cluster:
        leader = await cluster.leader()
        await cluster.agree()
        follower = next(name for name in cluster.names if name != leader)
        engine = engine_of(cluster.drivers[follower])
        chain = engine.applier.machine._chain
        chain._kept[-1] = chain.value = bytes(32)
        async with asyncio.timeout(10):
            error = await cluster.drivers[follower].failed
        assert isinstance(error, InvariantError)
        assert "differs from that of" in error.message
        await cluster.drivers[leader].propose(
            change_setting("task.max_retries", "4", "r"), timeout_s=5
        )
