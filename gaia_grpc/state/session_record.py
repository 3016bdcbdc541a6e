"""One session as the state holds it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

from gaia.command.v1 import command_pb2, snapshot_pb2
from gaia.session.v1 import session_pb2

from gaia_grpc.state.messages import timestamp

HEALTHY: Final = session_pb2.HEALTH_HEALTHY
DEGRADED: Final = session_pb2.HEALTH_DEGRADED
FAILED: Final = session_pb2.HEALTH_FAILED


Labels: TypeAlias = tuple[tuple[str, str], ...]


class Mark(NamedTuple):
    """What lists and watches may select by."""

    tier: int
    provider: str
    health: int
    specialty: str
    labels: Labels


def session_id_of(number: int) -> str:
    """The id of the session with this number; ids sort as their numbers do."""
    return f"s-{number:012d}"


class Session:
    """A session. `claims` are the numbers of the tasks that it holds (empty when it has failed)."""

    __slots__ = (
        "claims",
        "health",
        "incarnation",
        "labels",
        "last_heartbeat_ms",
        "max_concurrent_tasks",
        "name",
        "number",
        "provider",
        "register_ms",
        "session_id",
        "specialty",
        "tier",
    )

    def __init__(self, number: int, incarnation: int) -> None:
        self.number = number
        self.session_id = session_id_of(number)
        self.incarnation = incarnation
        self.name = ""
        self.tier: session_pb2.Tier.ValueType = session_pb2.TIER_WORKER
        self.provider = ""
        self.specialty = ""
        self.max_concurrent_tasks = 1
        self.labels: Labels = ()
        self.health: session_pb2.Health.ValueType = HEALTHY
        self.last_heartbeat_ms = 0
        self.register_ms = 0
        self.claims: set[int] = set()  # sorted wherever it is walked

    def describe(self, body: command_pb2.RegisterSession) -> None:
        """Takes over what the registration says."""
        self.name = body.name
        self.tier = body.tier or session_pb2.TIER_WORKER
        self.provider = body.provider
        self.specialty = body.specialty
        self.max_concurrent_tasks = body.max_concurrent_tasks
        self.labels = tuple((label.key, label.value) for label in body.labels)

    def encode(self) -> bytes:
        """The session's record in a snapshot."""
        return snapshot_pb2.SessionRecord(
            number=self.number,
            incarnation=self.incarnation,
            name=self.name,
            tier=self.tier,
            provider=self.provider,
            specialty=self.specialty,
            max_concurrent_tasks=self.max_concurrent_tasks,
            labels=label_messages(self.labels),
            health=self.health,
            last_heartbeat_ms=self.last_heartbeat_ms,
            register_ms=self.register_ms,
        ).SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, record: bytes) -> Session:
        """The session of a record; the tasks that it holds are added by the tasks."""
        message = snapshot_pb2.SessionRecord.FromString(record)
        session = cls(message.number, message.incarnation)
        session.name = message.name
        session.tier = message.tier
        session.provider = message.provider
        session.specialty = message.specialty
        session.max_concurrent_tasks = message.max_concurrent_tasks
        session.labels = tuple((label.key, label.value) for label in message.labels)
        session.health = message.health
        session.last_heartbeat_ms = message.last_heartbeat_ms
        session.register_ms = message.register_ms
        return session

    @property
    def free_capacity(self) -> int:
        """How many more tasks it may hold."""
        return max(0, self.max_concurrent_tasks - len(self.claims))

    @property
    def mark(self) -> Mark:
        """What lists and watches may select by."""
        return Mark(self.tier, self.provider, self.health, self.specialty, self.labels)

    @property
    def ready(self) -> bool:
        """It may get a task now."""
        return self.health == HEALTHY and len(self.claims) < self.max_concurrent_tasks

    def message(self) -> session_pb2.Session:
        """The session as callers see it."""
        return session_pb2.Session(
            session_id=self.session_id,
            name=self.name,
            tier=self.tier,
            provider=self.provider,
            specialty=self.specialty,
            max_concurrent_tasks=self.max_concurrent_tasks,
            health=self.health,
            incarnation=self.incarnation,
            last_heartbeat_time=timestamp(self.last_heartbeat_ms),
            register_time=timestamp(self.register_ms),
            claimed_tasks=len(self.claims),
            labels=label_messages(self.labels),
        )


def label_messages(labels: Iterable[tuple[str, str]]) -> list[session_pb2.Label]:
    """Labels as messages, in their order."""
    return [session_pb2.Label(key=key, value=value) for key, value in labels]
