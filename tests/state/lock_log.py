"""A log of locks with everything that they have, and shorthand for tests of them."""

from __future__ import annotations

import random
from typing import Any

from gaia.command.v1 import command_pb2, query_pb2
from gaia.lock.v1 import lock_pb2

from gaia_grpc.state.feature_levels import FEATURE_LEVEL
from tests.state.harness import Log

NAMES = ("a", "b", "c")
OWNERS = ("ann", "ben", "cem", "dua")


class Locks(Log):
    """A log with the commands of locks by hand."""

    def __init__(self, *settings: tuple[str, str]) -> None:
        super().__init__(*settings, level=FEATURE_LEVEL)

    def acquire(
        self, name: str = "a", holder: str = "ann", *, request_id: str = "", **fields: Any
    ) -> command_pb2.LockResult:
        """Acquires, with all fields of the result."""
        body = command_pb2.AcquireLock(name=name, holder=holder, **fields)
        return self.do(request_id=request_id, acquire_lock=body).lock

    def take(self, name: str = "a", holder: str = "ann", **fields: Any) -> lock_pb2.Lock:
        """Acquires a lock that is free."""
        result = self.acquire(name, holder, **fields)
        assert result.acquired, result
        return result.lock

    def queue(self, name: str = "a", holder: str = "ben", **fields: Any) -> int:
        """Waits for a lock that is held; returns the waiter's id."""
        fields.setdefault("wait_ms", 30_000)
        result = self.acquire(name, holder, **fields)
        assert result.waiter_id, result
        assert not result.acquired
        return result.waiter_id

    def release(self, lock: lock_pb2.Lock, **fields: Any) -> lock_pb2.Lock:
        """Releases; returns the lock as it is then."""
        return self.do(release_lock=held(lock), **fields).lock.lock

    def renew(self, lock: lock_pb2.Lock, lease_ms: int = 0) -> lock_pb2.Lock:
        """Renews."""
        return self.do(renew_lock={**held(lock), "lease_ms": lease_ms}).lock.lock

    def get(self, name: str = "a") -> lock_pb2.Lock:
        """The lock as it is now."""
        return self.ask(get_lock={"name": name}).get_lock.lock

    def lock_waited(self, waiter_id: int, name: str = "a") -> query_pb2.LockWaitResult:
        """What became of a wait."""
        return self.ask(lock_wait={"waiter_id": waiter_id, "name": name}).lock_wait


def held(lock: lock_pb2.Lock) -> dict[str, Any]:
    """The three fields that name a holding."""
    return {"name": lock.name, "holder": lock.holder, "fencing_token": lock.fencing_token}


def lock_log(seed: int, steps: int = 400) -> Log:
    """Few locks, many that want them, small limits, repeated requests, and time that passes."""
    source = random.Random(seed)
    log = Locks(
        ("request.retention", "30s"),
        ("request.ingress_retention", "5s"),
        ("lock.lease", "8s"),
        ("lock.max_waiters", "9"),
        ("lock.max_locks", "2"),
    )
    sent: list[dict[str, Any]] = []
    for step in range(steps):
        if sent and source.random() < 0.15:
            log.apply_fields(**source.choice(sent[-4:]))
            continue
        if source.random() < 0.2:
            log.advance(source.choice([1, 700, 2_000, 2_000, 9_000]))
            continue
        name, body = _step(log, source)
        fields: dict[str, Any] = {name: body}
        if source.random() < 0.5:
            fields["request_id"] = f"r{step}"
            fields["client_id"] = source.choice(["c1", "c2"])
            fields["ingress_assigned"] = source.random() < 0.3
            sent.append(fields)
        log.apply_fields(**fields)
    return log


def _step(log: Locks, source: random.Random) -> tuple[str, dict[str, Any]]:
    choice = source.randrange(20)
    name = source.choice(NAMES)
    if choice < 11:
        return "acquire_lock", {
            "name": name,
            "holder": source.choice(OWNERS),
            "lease_ms": source.choice([0, 3_000, 20_000]),
            "wait_ms": source.choice([0, 4_000, 50_000, 50_000]),
        }
    if choice < 13:
        return "cancel_lock_wait", {"waiter_id": source.randrange(1, 60)}
    if choice == 13:
        value = source.choice(["2", "3"])
        return "update_settings", {"changes": [{"name": "lock.max_locks", "value": value}]}
    holding = held(log.get(name))
    if source.random() < 0.2:
        holding["fencing_token"] += source.choice([-1, 1])
    if choice < 16:
        return "renew_lock", {**holding, "lease_ms": source.choice([0, 5_000])}
    return "release_lock", holding
