"""Outcomes by request_id, so that a repeated request changes nothing and gets the first answer."""

from __future__ import annotations

from collections import deque
from typing import Protocol, TypeAlias

from gaia.command.v1 import command_pb2

from gaia_grpc.state.context import Context
from gaia_grpc.state.refusal import ALREADY_EXISTS, RESOURCE_EXHAUSTED, refused

RequestKey: TypeAlias = tuple[str, str, str]
"""(principal, client_id, request_id)"""

SWEEP_TIMER = "request.sweep"
SWEEP_EVERY_MS = 1_000
SWEPT_PER_TIMER = 2_000
FULL_RETRY_MS = 1_000


class Replay(Protocol):
    """Tells a kept outcome again where that depends on the state (a claim, while it lives)."""

    def kept(self, result: command_pb2.CommandResult) -> bytes:
        """What to keep of a result."""
        ...

    def again(self, outcome: bytes) -> command_pb2.CommandResult:
        """The result for a repeated request; what it keeps replaces `outcome`."""
        ...


class RequestEntry:
    """One kept outcome."""

    __slots__ = ("digest", "expire_ms", "index", "key", "outcome")

    def __init__(
        self, key: RequestKey, digest: bytes, index: int, expire_ms: int, outcome: bytes
    ) -> None:
        self.key = key
        self.digest = digest
        self.index = index
        self.expire_ms = expire_ms
        self.outcome = outcome


class RequestTable:
    """First final outcomes, kept for request.retention of log time; full is full, none is evicted.

    An outcome is dropped by the first sweep after its time, so it may live up to a second longer.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._entries: dict[RequestKey, RequestEntry] = {}
        # By retention: within each, entries expire in the order of the log.
        self._client_order: deque[RequestEntry] = deque()
        self._ingress_order: deque[RequestEntry] = deque()
        self._sweep_is_set = False
        context.timers.register(SWEEP_TIMER, self._sweep)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, command: command_pb2.Command, replay: Replay | None) -> bytes | None:
        """The serialized result of the first request with this id; None where this is the first.

        Raises `Refused` where the id came with other content, or where the table is full.
        """
        entry = self._entries.get(key_of(command))
        if entry is None:
            if len(self._entries) >= self._context.settings.integer("request.max_entries"):
                raise refused(
                    RESOURCE_EXHAUSTED,
                    "REQUEST_TABLE_FULL",
                    "too many recent requests are remembered",
                    retry_after_ms=FULL_RETRY_MS,
                )
            return None
        if entry.digest != command.request_digest:
            raise refused(
                ALREADY_EXISTS,
                "REQUEST_ID_REUSED",
                f"the request_id {command.request_id!r} came with other content before",
                field="request_id",
                transient=True,
            )
        encoded = entry.outcome
        if replay is not None:
            result = replay.again(entry.outcome)
            entry.outcome = replay.kept(result)
            encoded = result.SerializeToString(deterministic=True)
        mark = command_pb2.CommandResult(repeated_from_index=entry.index)
        return encoded + mark.SerializeToString(deterministic=True)

    def keep(self, command: command_pb2.Command, outcome: bytes) -> None:
        """Remembers the outcome of a first request."""
        ingress = command.ingress_assigned
        name = "request.ingress_retention" if ingress else "request.retention"
        expire_ms = self._context.now_ms + self._context.settings.milliseconds(name)
        key = key_of(command)
        entry = RequestEntry(key, command.request_digest, self._context.index, expire_ms, outcome)
        self._entries[key] = entry
        (self._ingress_order if ingress else self._client_order).append(entry)
        if not self._sweep_is_set:
            self._set_sweep()

    def _set_sweep(self) -> None:
        heads = [order[0].expire_ms for order in (self._client_order, self._ingress_order) if order]
        self._sweep_is_set = bool(heads)
        if heads:
            # In steps of a second: a timer an outcome would make log entries of its own. Always
            # later than now, so that a sweep cut short goes on in another apply.
            later_ms = max(min(heads), self._context.now_ms + 1)
            due_ms = -(-later_ms // SWEEP_EVERY_MS) * SWEEP_EVERY_MS
            self._context.timers.schedule(due_ms, SWEEP_TIMER, 0)

    def _sweep(self, key: int | str) -> None:
        del key
        now_ms = self._context.now_ms
        left = SWEPT_PER_TIMER
        for order in (self._ingress_order, self._client_order):
            while left and order and order[0].expire_ms <= now_ms:
                del self._entries[order.popleft().key]
                left -= 1
        self._set_sweep()


def key_of(command: command_pb2.Command) -> RequestKey:
    """The scope of a request_id."""
    return (command.principal, command.client_id, command.request_id)
