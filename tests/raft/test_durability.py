"""The ledger of writes: what a completion stands for, and what waits for it."""

from __future__ import annotations

import pytest

from gaia_grpc.errors import InvariantError
from gaia_grpc.raft.durability import Durability
from gaia_grpc.raft.log import RaftLog
from gaia_grpc.raft.messages import Envelope, VoteResponse
from gaia_grpc.raft.types import HardState, Index, NodeId, Term, WriteBatch
from tests.support.cluster import entry, log_of, restored


class Bench:
    """A log and its ledger."""

    def __init__(self, *terms: int) -> None:
        stored = restored(*terms)
        self.log = RaftLog(stored)
        self.ledger = Durability(stored, self.log.last_index)
        self.state = stored.hard_state

    def append(self, *terms: int) -> None:
        first = self.log.last_index + 1
        self.log.append([entry(term, index) for index, term in enumerate(terms, first)])

    def truncate(self, first_removed: int) -> None:
        self.log.truncate(Index(first_removed), Index(0))
        self.ledger.truncated(Index(first_removed))

    def hand_out(self) -> WriteBatch | None:
        return self.ledger.hand_out(self.log, self.state)[0]


def message(number: int) -> Envelope:
    return Envelope(NodeId("n1"), NodeId(f"n{number}"), Term(1), VoteResponse(True))


def test_nothing_is_owed_after_a_restart() -> None:
    bench = Bench(1, 1)
    assert not bench.ledger.owes_write(bench.log.last_index)
    assert bench.hand_out() is None
    assert bench.ledger.durable_index == 2
    assert bench.ledger.hard_state_is_durable()


def test_writes_hold_each_entry_once_and_count_when_complete() -> None:
    bench = Bench()
    bench.append(1, 1)
    first = bench.hand_out()
    bench.append(1)
    second = bench.hand_out()
    assert first is not None
    assert second is not None
    assert (first.entries, second.entries) == (log_of(1, 1), (entry(1, 3),))
    assert bench.ledger.durable_index == 0
    bench.ledger.complete(first.write_number)
    assert bench.ledger.durable_index == 2
    bench.ledger.complete(second.write_number)
    assert bench.ledger.durable_index == 3
    bench.ledger.complete(second.write_number)
    assert bench.ledger.durable_index == 3


def test_one_completion_stands_for_all_earlier_writes() -> None:
    bench = Bench()
    for _ in range(3):
        bench.append(1)
        bench.hand_out()
    bench.ledger.complete(3)
    assert bench.ledger.durable_index == 3


def test_a_write_that_was_never_handed_out_cannot_complete() -> None:
    with pytest.raises(InvariantError, match="write 1 was never handed out"):
        Bench().ledger.complete(1)


def test_b31_a_completion_does_not_stand_for_what_was_overwritten_since() -> None:
    """1/1 is written, overwritten by 2/1 and brought back: three writes with (1, 1) twice."""
    bench = Bench()
    bench.append(1)
    bench.hand_out()
    bench.truncate(1)
    bench.append(2)
    bench.hand_out()
    bench.truncate(1)
    bench.append(1)
    bench.hand_out()
    bench.ledger.complete(1)
    assert bench.ledger.durable_index == 0, "write 2 will remove what write 1 left"
    bench.ledger.complete(2)
    assert bench.ledger.durable_index == 0
    bench.ledger.complete(3)
    assert bench.ledger.durable_index == 1


def test_truncation_before_the_hand_out_writes_only_what_is_left() -> None:
    bench = Bench(1)
    bench.append(1, 1)
    bench.truncate(2)
    bench.append(2)
    write = bench.hand_out()
    assert write is not None
    assert write.entries == (entry(2, 2),)


def test_the_commit_index_travels_only_with_other_changes() -> None:
    """Faults B8: it is not owed by itself, and never beyond the entries of its write."""
    bench = Bench(1)
    bench.state = HardState(Term(1), commit_index=Index(1))
    assert bench.hand_out() is None
    bench.append(1)
    write = bench.hand_out()
    assert write is not None
    assert write.hard_state == bench.state
    bench.append(1)
    write = bench.hand_out()
    assert write is not None
    assert write.hard_state is None, "nothing moved since"


def test_a_message_waits_for_all_that_was_in_memory_when_it_was_made() -> None:
    bench = Bench()
    assert not bench.ledger.defer(message(1), bench.log.last_index), "nothing to wait for"
    bench.append(1)
    assert bench.ledger.defer(message(2), bench.log.last_index)
    assert bench.ledger.hand_out(bench.log, bench.state)[1] == (message(2),)
    assert bench.ledger.defer(message(3), bench.log.last_index), "write 1 is under way"
    bench.append(1)
    assert bench.ledger.defer(message(4), bench.log.last_index)
    assert bench.ledger.hand_out(bench.log, bench.state)[1] == (message(4),)
    assert bench.ledger.complete(1) == [message(3)]
    assert bench.ledger.complete(2) == []


def test_term_and_vote_are_durable_when_their_own_write_is() -> None:
    bench = Bench()
    bench.append(1)
    bench.hand_out()
    assert bench.ledger.hard_state_is_durable(), "that write changes neither"
    bench.state = HardState(Term(2), NodeId("n1"))
    bench.ledger.hard_state_changed()
    assert not bench.ledger.hard_state_is_durable()
    bench.hand_out()
    assert not bench.ledger.hard_state_is_durable()
    bench.ledger.complete(1)
    assert not bench.ledger.hard_state_is_durable()
    bench.ledger.complete(2)
    assert bench.ledger.hard_state_is_durable()
