"""Giving out snapshots: one transfer at a time to one peer, and a report of each.

How the bytes travel is the transport's part (`Carrier`); that each transfer that was started is
reported once, whatever ends it, is done here for both transports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from gaia_grpc.errors import GaiaError
from gaia_grpc.raft.types import NodeId, SnapshotMeta, Term
from gaia_grpc.transport.api import InboundHandler, OutgoingSnapshot
from gaia_grpc.transport.links import log, reason_of, unbroken

Carrier = Callable[[Term, OutgoingSnapshot], Coroutine[Any, Any, None]]
"""Returns once the receiver has the whole snapshot; raises where it did not come to that."""


class SnapshotOutbox:
    """The transfers to one peer."""

    def __init__(self, peer: NodeId, inbound: InboundHandler, carry: Carrier) -> None:
        self._peer = peer
        self._inbound = inbound
        self._carry = carry
        self._transfer: _Transfer | None = None
        self._next: tuple[Term, SnapshotMeta] | None = None
        self._closing = False
        self._noted: tuple[str, str] | None = None

    def request(self, term: Term, meta: SnapshotMeta) -> bool:
        """Starts a transfer; False where one of this term is under way.

        One of an earlier term ends first: its receiver would refuse it.
        """
        if self._closing:
            return False
        if self._transfer is None:
            self._start(term, meta)
            return True
        if term <= self._transfer.term:
            return False
        self._transfer.task.cancel()
        self._next = (term, meta)
        return True

    def cancel(self) -> None:
        """Ends what is under way."""
        self._next = None
        if self._transfer is not None:
            self._transfer.task.cancel()

    async def close(self) -> None:
        """Ends what is under way and waits for its report."""
        self._closing = True
        self.cancel()
        while self._transfer is not None:
            await asyncio.wait([self._transfer.task])
            # The report is a callback of the task, due in the same turn.
            await asyncio.sleep(0)

    def _start(self, term: Term, meta: SnapshotMeta) -> None:
        transfer = self._transfer = _Transfer(self._peer, term, meta)
        transfer.run(self._inbound, self._carry, self._ended)

    def _ended(self, transfer: _Transfer) -> None:
        self._transfer = None
        self._note(transfer)
        try:
            self._inbound.on_snapshot_sent(self._peer, transfer.meta, transfer.delivered)
        finally:
            # The report may have asked for another one: what waits is of a later term.
            if self._next is not None:
                (term, meta), self._next = self._next, None
                self.request(term, meta)

    def _note(self, transfer: _Transfer) -> None:
        """Each failure once: a receiver without space is tried again with every heartbeat."""
        if transfer.failure is not None and transfer.failure != self._noted:
            reason, message = transfer.failure
            log.warning(
                "snapshot not delivered",
                peer=self._peer,
                index=transfer.meta.index,
                reason=reason,
                message=message,
            )
        self._noted = transfer.failure


class _Transfer:
    """One transfer. It ends with its task, also where that is cancelled before its first step."""

    def __init__(self, peer: NodeId, term: Term, meta: SnapshotMeta) -> None:
        self.term = term
        self.meta = meta
        self.delivered = False
        self.failure: tuple[str, str] | None = None
        """Its reason, and what it says of itself."""
        self._peer = peer
        self._snapshot: OutgoingSnapshot | None = None
        self.task: asyncio.Task[None]

    def run(
        self, inbound: InboundHandler, carry: Carrier, on_ended: Callable[[_Transfer], None]
    ) -> None:
        """Starts the task."""
        self.task = asyncio.create_task(self._run(inbound, carry), name=f"snapshot-to-{self._peer}")

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("task failed", task=task.get_name(), exc_info=error)
            on_ended(self)

        self.task.add_done_callback(ended)

    async def _run(self, inbound: InboundHandler, carry: Carrier) -> None:
        try:
            await unbroken(self._open(inbound))
            if self._snapshot is not None:
                self.meta = self._snapshot.meta
                await carry(self.term, self._snapshot)
                self.delivered = True
        except GaiaError as error:
            self.failure = (error.instance_reason, error.message)
        except grpc.aio.AioRpcError as error:
            self.failure = (reason_of(error), error.details() or "")
        except TimeoutError:
            self.failure = ("TIMEOUT", "the receiver is too slow")
        finally:
            if self._snapshot is not None:
                await unbroken(self._snapshot.close())

    async def _open(self, inbound: InboundHandler) -> None:
        self._snapshot = await inbound.open_snapshot(self.meta)
