"""What leaves for other peers: without the frames that the next frame makes needless, and with the
state's chain hash on heartbeats, which each follower compares with its own.

A follower learns from an append without entries that earlier ones are committed. With one writer
that calls again and again, the append of its next command tells the same a moment later, and every
frame costs a system call and several thread switches at both ends. So such a notice waits for
`NOTICE_DELAY_S`, and is dropped where another append to that peer leaves meanwhile. Dropping is
safe: Raft tolerates any loss, the later append carries a commit index at least as high, and should
that one get lost the next heartbeat tells. Heartbeats and read rounds bring a new round and never
wait; nor does the first notice of an urgent entry, one that people wait for (`hurry`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from gaia_grpc.raft.messages import AppendRequest, Envelope, StateChecksum
from gaia_grpc.raft.types import NodeId, Term

NOTICE_DELAY_S = 0.006


class Outbox:
    """Stands before the transport's `send`."""

    def __init__(
        self,
        send: Callable[[Envelope], None],
        checksum: Callable[[], StateChecksum | None] = lambda: None,
    ) -> None:
        """`checksum` is what heartbeats tell of this peer's state."""
        self._send = send
        self._checksum = checksum
        self._held: dict[NodeId, Envelope] = {}
        self._last_round: dict[NodeId, tuple[Term, int]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._urgent_index = 0
        self._told: dict[NodeId, int] = {}
        """Up to where each peer was told that entries are committed."""

    def hurry(self, index: int) -> None:
        """Whoever was not told yet that the entry at `index` is committed is told without delay."""
        if index <= self._urgent_index:
            return
        self._urgent_index = index
        for peer in [peer for peer in self._held if self._is_urgent(self._held[peer])]:
            self._send_append(self._held.pop(peer))

    def _is_urgent(self, notice: Envelope) -> bool:
        told = self._told.get(notice.to_node, 0)
        return told < self._urgent_index <= _committed_through(notice)

    def send(self, envelope: Envelope) -> None:
        """Sends now, or in a moment where it only tells what is committed."""
        payload = envelope.payload
        if isinstance(payload, AppendRequest):
            peer, current = envelope.to_node, (envelope.term, payload.round)
            is_notice = not payload.entries and self._last_round.get(peer) == current
            if is_notice and not self._is_urgent(envelope):
                self._held[peer] = envelope
                if self._timer is None:
                    loop = asyncio.get_running_loop()
                    self._timer = loop.call_later(NOTICE_DELAY_S, self._flush)
                return
            self._last_round[peer] = current
            self._held.pop(peer, None)
            if not payload.entries and not is_notice:
                envelope = replace(envelope, payload=replace(payload, checksum=self._checksum()))
            self._send_append(envelope)
            return
        self._send(envelope)

    def _send_append(self, envelope: Envelope) -> None:
        peer = envelope.to_node
        self._told[peer] = max(self._told.get(peer, 0), _committed_through(envelope))
        self._send(envelope)

    def _flush(self) -> None:
        self._timer = None
        held, self._held = self._held, {}
        for envelope in held.values():
            self._send_append(envelope)

    def close(self) -> None:
        """Drops what is held."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._held.clear()


def _committed_through(envelope: Envelope) -> int:
    """Up to where an append tells that entries are committed."""
    payload = envelope.payload
    if not isinstance(payload, AppendRequest):
        return 0
    return min(payload.commit_index, payload.previous_index + len(payload.entries))
