"""The outbox drops only what the next frame tells as well."""

from __future__ import annotations

import asyncio

from gaia_grpc.node.outbox import Outbox
from gaia_grpc.raft.messages import AppendRequest, Envelope, VoteRequest
from gaia_grpc.raft.types import Entry, EntryKind, Index, NodeId, Term

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")


def append(
    to: NodeId, previous: int, *, commit: int, entries: int = 0, round_number: int = 1
) -> Envelope:
    new = tuple(
        Entry(Term(1), Index(previous + number), EntryKind.COMMAND, b"x")
        for number in range(1, entries + 1)
    )
    request = AppendRequest(Index(previous), Term(1), new, Index(commit), round_number)
    return Envelope(N1, to, Term(1), request)


class Sent(list[Envelope]):
    """What the outbox sent; `until` waits for so many."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = asyncio.Event()

    def take(self, envelope: Envelope) -> None:
        self.append(envelope)
        self.changed.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self) < count:
                self.changed.clear()
                await self.changed.wait()


async def test_notice_is_dropped_when_the_next_append_tells_it() -> None:
    sent = Sent()
    outbox = Outbox(sent.take)
    first, last = append(N2, 1, commit=1, entries=1), append(N2, 2, commit=2, entries=1)
    outbox.send(first)
    outbox.send(append(N2, 2, commit=2))
    outbox.send(last)
    other = append(N3, 1, commit=1, entries=1)
    outbox.send(other)
    outbox.send(append(N3, 2, commit=2))
    await sent.until(4)
    assert sent == [first, last, other, append(N3, 2, commit=2)]


async def test_lone_notice_leaves_in_a_moment_and_only_the_newest() -> None:
    sent = Sent()
    outbox = Outbox(sent.take)
    outbox.send(append(N2, 1, commit=1, entries=2))
    outbox.send(append(N2, 3, commit=2))
    outbox.send(append(N2, 3, commit=3))
    assert len(sent) == 1
    await sent.until(2)
    assert sent[1] == append(N2, 3, commit=3)


async def test_heartbeats_read_rounds_and_votes_never_wait() -> None:
    sent = Sent()
    outbox = Outbox(sent.take)
    messages = [append(N2, 1, commit=1, round_number=number) for number in range(1, 4)]
    messages.append(Envelope(N1, N2, Term(1), VoteRequest(Index(1), Term(1))))
    for message in messages:
        outbox.send(message)
    assert sent == messages


async def test_notice_of_an_urgent_entry_leaves_at_once_and_once() -> None:
    sent = Sent()
    outbox = Outbox(sent.take)
    first = [append(peer, 1, commit=1, entries=2) for peer in (N2, N3)]
    for envelope in first:
        outbox.send(envelope)
    early, late = append(N2, 3, commit=3), append(N3, 3, commit=3)
    outbox.send(early)  # was held when the entry turned out to be urgent
    assert sent == first
    outbox.hurry(3)
    outbox.send(late)
    assert sent == [*first, early, late]
    for peer in (N2, N3):  # told: nothing is urgent any more
        outbox.send(append(peer, 3, commit=3))
    outbox.hurry(3)
    assert len(sent) == 4


async def test_notice_that_does_not_reach_the_urgent_entry_waits() -> None:
    sent = Sent()
    outbox = Outbox(sent.take)
    entries = append(N2, 1, commit=1, entries=2)
    outbox.send(entries)
    outbox.hurry(3)
    outbox.send(append(N2, 3, commit=2))
    assert sent == [entries]


async def test_closed_outbox_sends_nothing_more() -> None:
    sent = Sent()
    outbox = Outbox(sent.take)
    outbox.send(append(N2, 1, commit=1, entries=1))
    outbox.send(append(N2, 2, commit=2))
    outbox.close()
    await asyncio.sleep(0.02)
    assert len(sent) == 1
