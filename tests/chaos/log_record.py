"""The committed log of a run, put together from what the peers show and from what their disks hold.

While the run goes on, every peer is asked again and again for the entries that it holds as
committed: one that ever differs from what any peer showed before is the worst that can happen. What
the entries hold is read from the files of peers that have ended; a snapshot may have replaced a
part of them by then, so the record says how much of the content it knows.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from gaia.cluster.v1 import cluster_pb2
from gaia.cluster.v1.cluster_pb2_grpc import ClusterServiceStub
from gaia.command.v1 import command_pb2

from tests.chaos.caller import OPTIONS

POLL_S = 0.4
PAGE_SIZE = 2_000
KIND_COMMAND = 2
Identity = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """One entry as a disk holds it."""

    index: int
    term: int
    kind: int
    data: bytes


class LogRecord:
    """Everything known of the committed log."""

    def __init__(self) -> None:
        self.shown: dict[int, tuple[int, int, bytes]] = {}
        """Index to (term, kind, checksum), from any peer."""
        self.content: dict[int, Stored] = {}
        self.violations: list[str] = []
        self._held: dict[str, list[Stored]] = {}

    # --- while the run goes on -------------------------------------------------------------------

    async def watch(self, addresses: Mapping[str, str], stopping: asyncio.Event) -> None:
        """Asks all peers until the end of the run."""
        async with asyncio.TaskGroup() as group:
            for node_id, address in addresses.items():
                group.create_task(self._watch_peer(node_id, address, stopping))

    async def _watch_peer(self, node_id: str, address: str, stopping: asyncio.Event) -> None:
        start = 1
        async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
            stub = ClusterServiceStub(channel)
            while not stopping.is_set():
                request = cluster_pb2.ListLogEntriesRequest(start_index=start, page_size=PAGE_SIZE)
                try:
                    page = await stub.ListLogEntries(request, timeout=2)
                except grpc.aio.AioRpcError:
                    page = None
                if page is not None and page.entries:
                    start = self.note(node_id, page.entries) + 1
                await asyncio.sleep(POLL_S)

    def note(self, node_id: str, entries: Iterable[cluster_pb2.LogEntry]) -> int:
        """Takes committed entries that a peer shows; returns the index of the last one."""
        last = 0
        for entry in entries:
            last = entry.index
            found = (entry.term, int(entry.kind), entry.checksum)
            known = self.shown.setdefault(entry.index, found)
            if known != found:
                self.violations.append(
                    f"committed entry {entry.index} was of term {known[0]}, "
                    f"{node_id} now shows term {entry.term} or other content"
                )
        return last

    # --- from the disks of peers that have ended ------------------------------------------------

    def take_disk(self, node_id: str, directory: Path) -> None:
        """Reads the entries of a peer that does not run; its files are not touched."""
        with tempfile.TemporaryDirectory(prefix="gaia-chaos-log-") as copy:
            for name in ("raft.db", "raft.db-wal"):
                if (directory / name).exists():
                    shutil.copyfile(directory / name, Path(copy) / name)
            if (Path(copy) / "raft.db").exists():
                self._held.setdefault(node_id, []).extend(_entries(Path(copy) / "raft.db"))

    def settle(self) -> None:
        """Decides, at the end, which stored entries were committed.

        A stored entry with the index and the term of a committed one is that entry (Log Matching).
        """
        for node_id, entries in self._held.items():
            for entry in entries:
                shown = self.shown.get(entry.index)
                if shown is None or shown[0] != entry.term:
                    continue
                known = self.content.setdefault(entry.index, entry)
                if known != entry:
                    self.violations.append(
                        f"entry {entry.index} of term {entry.term} differs on the disk of {node_id}"
                    )
        self._held.clear()

    # --- what it says ----------------------------------------------------------------------------

    @property
    def last_index(self) -> int:
        """The last committed index that any peer showed."""
        return max(self.shown, default=0)

    @property
    def coverage(self) -> float:
        """Share of the committed entries whose content is known."""
        return len(self.content) / max(self.last_index, 1)

    @property
    def is_complete(self) -> bool:
        """Whether every entry from the first on is known."""
        return len(self.content) == self.last_index > 0

    def command(self, index: int) -> command_pb2.Command | None:
        """The command at an index, where its content is known."""
        entry = self.content.get(index)
        if entry is None or entry.kind != KIND_COMMAND:
            return None
        return command_pb2.Command.FromString(entry.data)

    def identities(self) -> dict[Identity, list[int]]:
        """Identity of an operation to the indexes at which it stands."""
        found: dict[Identity, list[int]] = {}
        for index in sorted(self.content):
            command = self.command(index)
            for identity in command_identities(command) if command is not None else ():
                found.setdefault(identity, []).append(index)
        return found


def _entries(database: Path) -> list[Stored]:
    try:
        with closing(sqlite3.connect(database)) as connection:
            rows = connection.execute("SELECT log_index, term, kind, data FROM entries").fetchall()
    except sqlite3.DatabaseError:  # bytes were flipped here, or the process ended while it began
        return []
    return [Stored(*row) for row in rows]


def command_identities(command: command_pb2.Command) -> list[Identity]:
    """What tells the operations in a command from all others."""
    if command.request_id and not command.ingress_assigned:
        return [("request", command.request_id)]
    match command.WhichOneof("body"):
        case "extend_claim":
            extend = command.extend_claim
            return [("extend", extend.task_id, extend.claim_token, extend.checkpoint.decode())]
        case "complete_tasks":
            return [
                ("complete", one.task_id, one.claim_token, one.result.decode())
                for one in command.complete_tasks.completions
            ]
        case "fail_task":
            return [("fail", command.fail_task.task_id, command.fail_task.claim_token)]
        case "release_task":
            return [("release", command.release_task.task_id, command.release_task.claim_token)]
        case "publish_metrics":
            return [
                ("batch", f"{batch.source_id}/{batch.source_epoch}/{batch.sequence}")
                for batch in command.publish_metrics.batches
            ]
        case _:
            return []
