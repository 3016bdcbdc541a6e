"""Watchers of a machine for tests: they keep what the messages tell, as a client would."""

from __future__ import annotations

from typing import Any

from gaia.command.v1 import query_pb2

from gaia_grpc.state.machine import StateMachine

EXISTING, COMPLETE, CHANGED, REMOVED, RESYNC = 1, 2, 3, 4, 5


class Watcher:
    """Follows tasks or sessions; `held` is what it believes to be there."""

    def __init__(self, noun: str, limit: int = 3, **select: Any) -> None:
        self.noun = noun
        self.held: dict[str, Any] = {}
        self.kinds: list[int] = []
        self.through_index = 0
        """Where another watcher could go on with what this one holds."""
        self.changes: list[tuple[str, int]] = []
        """(id, index) of every change that was sent, in order."""
        self._limit = limit
        self._select = select
        self._place: query_pb2.WatchPlace | None = None

    def go_on(self, after_index: int) -> None:
        """Stands after an index, as a watch does that begins at another peer."""
        self._place = query_pb2.WatchPlace(index=after_index, complete=True)

    def step(self, machine: StateMachine) -> bool:
        """Takes one read; returns whether there is more at once."""
        query: dict[str, Any] = {"filter": self._select, "limit": self._limit}
        if self._place is not None:
            query["place"] = self._place
        name = f"watch_{self.noun}s"
        body: dict[str, Any] = {name: query}
        data = query_pb2.Query(**body).SerializeToString()
        result = query_pb2.QueryResult.FromString(machine.query(data, machine.elapsed_ms))
        answer = getattr(result, name)
        self._place = answer.place
        told = 0
        for message in answer.messages:
            told += self._take(message)
        assert told <= self._limit
        return bool(answer.more)

    def catch_up(self, machine: StateMachine) -> None:
        """Reads until there is nothing more."""
        while self.step(machine):
            pass

    def _take(self, message: Any) -> int:
        self.kinds.append(message.kind)
        if message.through_index:
            assert message.through_index >= self.through_index
            self.through_index = message.through_index
        if message.kind == EXISTING:
            records = getattr(message, f"{self.noun}s")
            for record in records:
                assert self._id(record) not in self.held, "sent twice in one picture"
                self.held[self._id(record)] = record
            return len(records)
        record = getattr(message, self.noun)
        if message.kind == RESYNC:
            self.held.clear()
            self.through_index = 0
        elif message.kind == CHANGED:
            self.held[self._id(record)] = record
            self.changes.append((self._id(record), message.applied_index))
        elif message.kind == REMOVED:
            self.held.pop(self._id(record), None)
        return int(message.kind in (CHANGED, REMOVED))

    def _id(self, record: Any) -> str:
        return str(getattr(record, f"{self.noun}_id"))
