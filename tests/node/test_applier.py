"""What an applier keeps and drops when a snapshot, or another leader's log, takes the place."""

from __future__ import annotations

import asyncio

import pytest

from gaia_grpc.errors import OutcomeUnknownError
from gaia_grpc.node.api import Applied
from gaia_grpc.node.applier import Applier, ProposalDroppedError
from gaia_grpc.node.topics import TopicBoard
from gaia_grpc.raft.types import Entry, EntryId, EntryKind, Index, SnapshotMeta, Term
from gaia_grpc.state.machine import StateMachine


def entries(first: int, last: int) -> list[Entry]:
    return [Entry(Term(1), Index(index), EntryKind.NOOP, b"") for index in range(first, last + 1)]


def machine_at(index: int) -> StateMachine:
    machine = StateMachine()
    for entry in entries(1, index):
        machine.apply(entry.index, int(entry.kind), entry.data)
    return machine


async def test_b18_entries_that_the_snapshot_holds_are_not_applied_again() -> None:
    """They were committed, and waited for their turn, when the snapshot came."""
    applier = Applier(machine_at(2), TopicBoard())
    loop = asyncio.get_running_loop()
    answers: dict[int, asyncio.Future[Applied]] = {}
    for index in (4, 7):
        answers[index] = loop.create_future()
        applier.expect(EntryId(Term(1), Index(index)), answers[index], 1)
    applier.committed(entries(3, 5))
    applier.hold()
    applier.committed(entries(6, 8))
    applier.run()
    assert applier.machine.applied_index == 2
    restored = machine_at(6)
    applier.replace(restored, SnapshotMeta(Index(6), Term(1), b""))
    while applier.run():
        pass
    assert applier.machine is restored
    assert restored.applied_index == 8
    assert restored.state_hash() == machine_at(8).state_hash()
    assert applier.stats.entries == 2
    assert answers[7].result().index == 7
    with pytest.raises(OutcomeUnknownError):
        answers[4].result()


async def test_a_proposal_behind_an_entry_of_a_later_term_is_dropped_at_once() -> None:
    """It waited until its index was reached: with all callers waiting like that, for ever."""
    applier = Applier(machine_at(2), TopicBoard())
    applier.applied_term = Term(1)
    loop = asyncio.get_running_loop()
    mine: dict[int, asyncio.Future[Applied]] = {}
    for index, term in ((3, 1), (5, 1), (6, 1), (7, 2)):
        mine[index] = loop.create_future()
        applier.expect(EntryId(Term(term), Index(index)), mine[index], 10)
    applier.committed(entries(3, 3))
    applier.committed([Entry(Term(2), Index(4), EntryKind.NOOP, b"")])
    while applier.run():
        pass
    assert mine[3].result().index == 3
    for index in (5, 6):
        assert isinstance(mine[index].exception(), ProposalDroppedError)
    assert not mine[7].done()
    assert (applier.waiting_proposals, applier.waiting_size_bytes) == (1, 10)
