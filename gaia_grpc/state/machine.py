"""The replicated state machine: a pure function of the log.

Time is the log time of the commands, order is the order of the log, and everything that apply
depends on is state. So the same log gives the same bytes on every peer.
"""

from __future__ import annotations

from collections.abc import Sequence

from gaia.cluster.v1 import cluster_pb2
from gaia.command.v1 import command_pb2, query_pb2, snapshot_pb2
from google.protobuf.message import DecodeError

from gaia_grpc.errors import InvariantError, invariant
from gaia_grpc.raft.types import EntryKind
from gaia_grpc.state.chain import ChainHash
from gaia_grpc.state.context import CommandHandler, Context, QueryHandler
from gaia_grpc.state.feature_levels import ANNOUNCED_EARLIER, required_level
from gaia_grpc.state.refusal import (
    INVALID_ARGUMENT,
    Refused,
    feature_level_too_low,
    refused,
    unimplemented,
)
from gaia_grpc.state.requests import RequestTable
from gaia_grpc.state.settings import Settings
from gaia_grpc.state.snapshot import Part
from gaia_grpc.state.snapshot_codec import FORMAT, SnapshotEncoder
from gaia_grpc.state.tables import build_tables


class StateMachine:
    """Applies committed entries in order and answers queries; never waits, never reads a clock."""

    def __init__(self) -> None:
        self._context = Context()
        self._chain = ChainHash()
        self._requests = RequestTable(self._context)
        self._commands: dict[str, CommandHandler] = {}
        self._queries: dict[str, QueryHandler] = {}
        tables = build_tables(self._context, self._requests)
        self._tables, self._replays = tables.ordered, tables.replays
        self._student_data = tables.student_data
        self._alerts = tables.alerts
        parts = list(self._requests.parts)
        for table in self._tables:
            self._commands.update(table.commands)
            self._queries.update(table.queries)
            parts.extend(table.parts)
        self.parts: Sequence[Part] = tuple(parts)
        """Sections of a snapshot in their order; later ones may look at earlier ones in `load`."""
        self._encoder: SnapshotEncoder | None = None

    @property
    def applied_index(self) -> int:
        """Index of the last applied entry; 0 before the first."""
        return self._chain.index

    @property
    def elapsed_ms(self) -> int:
        """Log time in milliseconds; 0 before the founding."""
        return self._context.now_ms

    @property
    def cluster_id(self) -> str:
        """Id of the cluster; empty before the founding."""
        return self._context.cluster_id

    @property
    def feature_level(self) -> int:
        """What the cluster may use; 1 before the founding."""
        return self._context.feature_level

    @property
    def deletion_index(self) -> int:
        """Index of the last command that deleted a student's data; 0 where there was none. A log
        up to it holds what the state must not hold any more."""
        return self._student_data.last_index

    def lost_peers(self) -> tuple[str, ...]:
        """Members with an open alert that they do not answer, sorted."""
        return self._alerts.lost_peers()

    def peer_lost_after_ms(self) -> int:
        """After so long without an answer a member is lost."""
        return self._context.settings.milliseconds("alert.peer_lost_after")

    def apply(self, index: int, kind: int, data: bytes) -> bytes:
        """Applies the next entry; returns a serialized CommandResult (empty for other kinds).

        Raises `InvariantError` where the entry can't be understood or applying it fails; the peer
        must stop then, since the others may have got further.
        """
        invariant(
            index == self.applied_index + 1,
            f"entry {index} can't be applied after {self.applied_index}",
        )
        result = self._apply_command(index, data) if kind == EntryKind.COMMAND else b""
        self._chain.extend(index, kind, data, result)
        return result

    def query(self, query: bytes, now_ms: int) -> bytes:
        """Answers a serialized Query; a refusal is a normal result."""
        try:
            parsed = query_pb2.Query.FromString(query)
            name = parsed.WhichOneof("body")
            if name is None:
                raise refused(INVALID_ARGUMENT, "INVALID_ARGUMENT", "a query without a body")
            handler = self._queries.get(name)
            if handler is None:
                raise unimplemented(name)
            result = handler(getattr(parsed, name), max(now_ms, self.elapsed_ms))
        except DecodeError:
            bad = refused(INVALID_ARGUMENT, "INVALID_ARGUMENT", "a query that can't be decoded")
            result = query_pb2.QueryResult(refusal=bad.refusal)
        except Refused as no:
            result = query_pb2.QueryResult(refusal=no.refusal)
        return result.SerializeToString(deterministic=True)

    def next_due_ms(self) -> int | None:
        """The log time at which AdvanceTime is due; None where nothing waits."""
        return self._context.timers.next_due_ms()

    def state_hash(self, at_index: int = 0) -> tuple[int, bytes] | None:
        """(index, chain hash) after `at_index`, or the newest for 0; None where it is not kept."""
        index = at_index or self.applied_index
        value = self._chain.at(index)
        return None if value is None else (index, value)

    def take_touched(self) -> list[str]:
        """Topics touched since the last call, each once, in the order of their first touch."""
        return self._context.take_touched()

    # --- snapshots

    def begin_snapshot(self) -> SnapshotEncoder:
        """The state as it is now, to be taken while further entries are applied.

        Raises `InvariantError` where another one is under way.
        """
        under_way = self._encoder is not None and not self._encoder.closed
        invariant(not under_way, "a snapshot is under way")
        context = self._context
        settings = context.settings
        header = snapshot_pb2.SnapshotHeader(
            format=FORMAT,
            index=self.applied_index,
            state_hash=self._chain.value,
            elapsed_ms=context.now_ms,
            wall_ms=context.wall_ms,
            cluster_id=context.cluster_id,
            feature_level=context.feature_level,
            settings_version=settings.version,
            settings=[
                cluster_pb2.SettingChange(name=name, value=value)
                for name, value in settings.texts(context.feature_level)
            ],
        )
        self._encoder = SnapshotEncoder(header, self.parts)
        return self._encoder

    def restore_header(self, header: snapshot_pb2.SnapshotHeader) -> None:
        """Begins to restore an empty machine; the parts load their records afterwards."""
        invariant(self.applied_index == 0, "only an empty machine can be restored")
        context = self._context
        context.index = header.index
        context.now_ms = header.elapsed_ms
        context.wall_ms = header.wall_ms
        context.cluster_id = header.cluster_id
        context.feature_level = header.feature_level
        context.settings = Settings().changed(
            [(change.name, change.value) for change in header.settings],
            version=header.settings_version,
        )
        self._chain.restore(header.index, header.state_hash)

    def _apply_command(self, index: int, data: bytes) -> bytes:
        try:
            command = command_pb2.Command.FromString(data)
        except DecodeError as error:
            raise InvariantError(f"entry {index} holds no command") from error
        name = command.WhichOneof("body")
        invariant(name is not None, f"entry {index} holds no command that this version knows")
        context = self._context
        context.index = index
        context.now_ms = max(context.now_ms, command.elapsed_ms)
        context.wall_ms = command.wall_ms
        context.principal = command.principal
        try:
            return self._run(str(name), command)
        except Exception as error:
            raise InvariantError(f"applying entry {index} ({name}) failed: {error!r}") from error

    def _run(self, name: str, command: command_pb2.Command) -> bytes:
        handler = self._commands.get(name)
        replay = self._replays.get(name)
        try:
            if command.request_id:
                repeated = self._requests.find(command, replay)
                if repeated is not None:
                    return repeated
            if handler is None:
                raise unimplemented(name)
            level = required_level(name)
            if level > self._context.feature_level:
                if name in ANNOUNCED_EARLIER:
                    raise unimplemented(name)
                raise feature_level_too_low(name, level)
            settings = self._context.settings
            result = handler(getattr(command, name))
            transient = False
            if self._context.settings is not settings:
                for table in self._tables:
                    table.settings_changed()
        except Refused as no:
            result = command_pb2.CommandResult(refusal=no.refusal)
            transient = no.transient
        encoded = result.SerializeToString(deterministic=True)
        if command.request_id and not transient:
            self._requests.keep(command, replay.kept(result) if replay else encoded)
        return encoded
