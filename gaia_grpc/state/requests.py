"""Outcomes by request_id, so that a repeated request changes nothing and gets the first answer."""

from __future__ import annotations

from collections.abc import Sequence
from sys import intern
from typing import Protocol, TypeAlias

from gaia.alert.v1 import alert_pb2
from gaia.command.v1 import command_pb2, snapshot_pb2

from gaia_grpc.state.context import Context
from gaia_grpc.state.refusal import ALREADY_EXISTS, RESOURCE_EXHAUSTED, refused
from gaia_grpc.state.snapshot import Frozen, Part, records_section, single_section
from gaia_grpc.state.sweep import Sweep

RequestKey: TypeAlias = tuple[str, str, str]
"""(principal, client_id, request_id)"""

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

    __slots__ = ("digest", "expire_ms", "index", "ingress_assigned", "outcome")

    def __init__(
        self, digest: bytes, index: int, expire_ms: int, outcome: bytes, *, ingress_assigned: bool
    ) -> None:
        self.ingress_assigned = ingress_assigned
        self.digest = digest
        self.index = index
        self.expire_ms = expire_ms
        self.outcome = outcome


class RequestTable:
    """First final outcomes, kept for request.retention of log time; full is full, none is evicted.

    An outcome is dropped by the first sweep after its time, so it may live a second longer.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._entries: dict[RequestKey, RequestEntry] = {}
        # By retention: within each, entries expire in the order of the log.
        self._client_sweep = Sweep[RequestKey](context, "request.client_sweep", self._drop)
        self._ingress_sweep = Sweep[RequestKey](context, "request.ingress_sweep", self._drop)
        self._frozen = Frozen(self._entries, _encode)
        self.parts: Sequence[Part] = (
            records_section("request", self._frozen, self._load),
            single_section("request_sweeps", self._encode_sweeps, self._load_sweeps),
        )

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, command: command_pb2.Command, replay: Replay | None) -> bytes | None:
        """The serialized result of the first request with this id; None where this is the first.

        Raises `Refused` where the id came with other content, or where the table is full.
        """
        entry = self._entries.get(key_of(command))
        if entry is None:
            # The way out of a full table is a greater limit: that passes.
            full = len(self._entries) >= self._context.settings.integer("request.max_entries")
            if full and not command.HasField("update_settings"):
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
            self._frozen.changing(key_of(command))
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
        self._frozen.changing(key)
        self._entries[key] = RequestEntry(
            command.request_digest,
            self._context.index,
            expire_ms,
            outcome,
            ingress_assigned=ingress,
        )
        self._sweep(ingress_assigned=ingress).add(expire_ms, key)

    def forget_student(self, student_id: str) -> int:
        """Takes a student's alerts out of kept outcomes; returns of how many.

        Looks at all of them: 0.1 us each.
        """
        needle = student_id.encode()
        changed = 0
        for key, entry in self._entries.items():
            if needle not in entry.outcome:
                continue
            result = command_pb2.CommandResult.FromString(entry.outcome)
            if result.alert.student_id != student_id:
                continue
            bare = alert_pb2.Alert(alert_id=result.alert.alert_id)
            self._frozen.changing(key)
            entry.outcome = command_pb2.CommandResult(alert=bare).SerializeToString(
                deterministic=True
            )
            changed += 1
        return changed

    def _sweep(self, *, ingress_assigned: bool) -> Sweep[RequestKey]:
        return self._ingress_sweep if ingress_assigned else self._client_sweep

    def _drop(self, key: RequestKey) -> None:
        self._frozen.changing(key)
        del self._entries[key]

    # --- snapshots

    def _load(self, record: bytes) -> None:
        message = snapshot_pb2.RequestRecord.FromString(record)
        key = (intern(message.principal), intern(message.client_id), message.request_id)
        if key in self._entries:
            raise ValueError(f"the request {key} is there twice")
        self._entries[key] = RequestEntry(
            message.digest,
            message.index,
            message.expire_ms,
            message.outcome,
            ingress_assigned=message.ingress_assigned,
        )
        # The order of the records is that of their indexes, and so the one of each queue.
        sweep = self._sweep(ingress_assigned=message.ingress_assigned)
        sweep.restore(((message.expire_ms, key),))

    def _encode_sweeps(self) -> bytes:
        return snapshot_pb2.RequestSweeps(
            client_due_ms=self._client_sweep.due_ms, ingress_due_ms=self._ingress_sweep.due_ms
        ).SerializeToString(deterministic=True)

    def _load_sweeps(self, record: bytes) -> None:
        message = snapshot_pb2.RequestSweeps.FromString(record)
        self._client_sweep.set_due(message.client_due_ms)
        self._ingress_sweep.set_due(message.ingress_due_ms)


def _encode(key: RequestKey, entry: RequestEntry) -> bytes:
    principal, client_id, request_id = key
    return snapshot_pb2.RequestRecord(
        principal=principal,
        client_id=client_id,
        request_id=request_id,
        digest=entry.digest,
        index=entry.index,
        expire_ms=entry.expire_ms,
        outcome=entry.outcome,
        ingress_assigned=entry.ingress_assigned,
    ).SerializeToString(deterministic=True)


def key_of(command: command_pb2.Command) -> RequestKey:
    """The scope of a request_id. A client has thousands: its own id is there once."""
    return (intern(command.principal), intern(command.client_id), command.request_id)
