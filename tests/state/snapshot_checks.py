"""Differential checks of snapshots over any log, and a log of coordination for them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from gaia.command.v1 import query_pb2

from gaia_grpc.raft.types import EntryKind
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.restore import SnapshotDecoder
from gaia_grpc.state.snapshot_codec import SnapshotEncoder
from tests.state.harness import Log

Entries = Sequence[tuple[int, bytes]]

QUERIES: tuple[dict[str, Any], ...] = (
    {"list_sessions": {"page_size": 1_000}},
    {"score_sessions": {"affinity": "math"}},
    {"list_tasks": {"page_size": 1_000}},
    {"get_queue_stats": {}},
    {"list_task_policies": {}},
    {"get_settings": {}},
    *({"get_task": {"task_id": f"t-{number:012d}"}} for number in range(1, 40)),
    *({"claim_wait": {"waiter_id": number}} for number in range(1, 40)),
    *(
        {"list_aggregates": {"classroom_id": room, "timeline_id": timeline}}
        for room in ("room-1", "room-2")
        for timeline in ("", "t", "u")
    ),
    {"list_alerts": {}},
    {"alert_events": {"limit": 1_000}},
    {"list_alerts": {"filter": {"kind": 2}}},
    {"alert_events": {"limit": 1_000, "filter": {"kind": 2}}},
    {"list_alerts": {"filter": {"teacher_id": "t1"}}},
    {"list_interventions": {"page_size": 1_000}},
    {"list_locks": {"page_size": 1_000}},
    {"list_classrooms": {"page_size": 1_000}},
    {"list_classrooms": {"page_size": 1_000, "teacher_id": "t1"}},
    *({"lock_wait": {"waiter_id": number, "name": "a"}} for number in range(1, 40)),
)


def rest_of(encoder: SnapshotEncoder, max_records: int = 1_000) -> bytes:
    """What is left of a snapshot."""
    return b"".join(iter(lambda: encoder.take(max_records), b""))


def whole(machine: StateMachine) -> bytes:
    """A snapshot with nothing applied meanwhile."""
    return rest_of(machine.begin_snapshot())


def restored(data: bytes, cut: int = 1 << 16) -> StateMachine:
    """The machine of a snapshot's bytes, fed in pieces of `cut`."""
    decoder = SnapshotDecoder()
    for start in range(0, len(data), cut):
        decoder.feed(data[start : start + cut])
    return decoder.finish()


def answers(machine: StateMachine, now_ms: int) -> list[bytes]:
    """What is said to many questions."""
    return [
        machine.query(query_pb2.Query(**query).SerializeToString(), now_ms) for query in QUERIES
    ]


def check_frozen(entries: Entries, begin_at: int, records_a_command: Callable[[], int]) -> int:
    """Applies all entries; from the index `begin_at` on takes snapshot after snapshot, some records
    a command, and compares each with the one of a machine that stood still. Returns how many."""
    machine = StateMachine()
    compared = 0
    encoder: SnapshotEncoder | None = None
    expected = taken = b""
    for index, (kind, data) in enumerate(entries, start=1):
        machine.apply(index, kind, data)
        if encoder is None:
            if index < begin_at:
                continue
            expected = whole(machine)
            encoder = machine.begin_snapshot()
            taken = b""
            continue
        wanted = records_a_command()
        if not wanted:
            continue
        piece = encoder.take(wanted)
        taken += piece
        if not piece:
            assert taken == expected, f"snapshot at {encoder.index} is not what it was there"
            compared += 1
            encoder = None
    if encoder is not None:
        taken += rest_of(encoder)
        assert taken == expected, f"snapshot at {encoder.index} is not what it was there"
        compared += 1
    return compared


def check_restored(entries: Entries, begin_at: int) -> None:
    """A machine restored at the index `begin_at` goes on like the one that it is of."""
    machine = StateMachine()
    for index, (kind, data) in enumerate(entries[:begin_at], start=1):
        machine.apply(index, kind, data)
        machine.take_touched()
    twin = restored(whole(machine), cut=777)
    check_equal(machine, twin)
    for index, (kind, data) in enumerate(entries[begin_at:], start=begin_at + 1):
        assert twin.apply(index, kind, data) == machine.apply(index, kind, data), index
        assert twin.take_touched() == machine.take_touched(), index
        assert twin.next_due_ms() == machine.next_due_ms(), index
    check_equal(machine, twin)


def check_equal(machine: StateMachine, twin: StateMachine) -> None:
    """Nothing tells the two apart."""
    assert twin.state_hash() == machine.state_hash()
    assert twin.applied_index == machine.applied_index
    assert (twin.elapsed_ms, twin.cluster_id) == (machine.elapsed_ms, machine.cluster_id)
    assert twin.feature_level == machine.feature_level
    assert twin.next_due_ms() == machine.next_due_ms()
    assert timers(twin) == timers(machine)
    assert whole(twin) == whole(machine)
    now_ms = machine.elapsed_ms
    assert answers(twin, now_ms) == answers(machine, now_ms)


def timers(machine: StateMachine) -> list[tuple[int, str, int | str]]:
    """All live timers in the order in which they fire, without their serial numbers."""
    return machine._context.timers.live()


def busy_log(seed: int, steps: int = 400) -> Log:
    """Coordination with everything that it has, with small limits, so that all of them are met."""
    source = random.Random(seed)
    log = Log(
        ("task.claim_timeout", "20s"),
        ("task.retention", "40s"),
        ("task.max_finished", "12"),
        ("task.max_history", "4"),
        ("request.retention", "30s"),
        ("request.ingress_retention", "5s"),
        ("session.retention", "60s"),
        ("task.ageing_interval", "3s"),
        ("task.retry_jitter", "0.5"),
        ("task.max_dependents", "6"),
    )
    for number in range(5):
        log.register(f"w{number}", ("math", "art", "general")[number % 3], 2)
    sent: list[dict[str, Any]] = []
    waits: list[dict[str, Any]] = []
    for step in range(steps):
        name, body = _step(log, source)
        if sent and source.random() < 0.1:
            log.apply_fields(**source.choice(sent[-3:] + waits[-2:]))
            continue
        if name == "advance":
            log.advance(body["milliseconds"])
            continue
        if name == "noop":
            log.apply_raw(EntryKind.NOOP, b"")
            continue
        identity: dict[str, Any] = {}
        if source.random() < 0.5:
            identity = {
                "principal": source.choice(["", "teacher"]),
                "client_id": source.choice(["c1", "c2"]),
                "request_id": f"r{step}",
                "ingress_assigned": source.random() < 0.3,
            }
            sent.append({name: body, **identity})
        result = log.apply_fields(**{name: body}, **identity)
        if identity and result.claim.waiter_id:
            waits.append({name: body, **identity})
    return log


def _step(log: Log, source: random.Random) -> tuple[str, dict[str, Any]]:
    session_id = f"s-{source.randrange(1, 12):012d}"
    claimed = log.ask(list_tasks={"state": 3}).list_tasks.tasks
    held = source.choice(claimed) if claimed else None
    newest = log.stats().enqueued_total
    task_id = f"t-{source.randrange(max(1, newest - 30), newest + 2):012d}"
    choice = source.randrange(27)
    if choice < 4:
        count = source.randrange(1, 4)
        return "enqueue_tasks", {
            "tasks": [_spec(source, newest, position) for position in range(count)]
        }
    if choice < 9:
        return "claim_tasks", {
            "session_id": session_id,
            "max_tasks": source.randrange(1, 4),
            "wait_ms": source.choice([0, 9_000, 50_000, 50_000]),
            "include_unmatched": source.random() < 0.6,
            "task_types": source.choice([[], ["grade"], ["tutor", "grade"]]),
        }
    if choice < 11:
        return "register_session", {
            "name": f"w{source.randrange(9)}",
            "specialty": source.choice(["math", "art", "general"]),
            "max_concurrent_tasks": source.randrange(1, 4),
            "labels": [{"key": key, "value": "x"} for key in ("a", "b")],
            "provider": source.choice(["", "local"]),
        }
    if choice < 13 or choice > 23:
        numbers = [number for number in range(1, 12) if source.random() < 0.8]
        return "record_heartbeats", {
            "heartbeats": [{"session_id": f"s-{number:012d}"} for number in numbers]
        }
    if choice < 15:
        jump_ms = source.choice([1, 700, 700, 700, 3_000, 3_000, 3_000, 7_000, 31_000])
        return "advance", {"milliseconds": jump_ms}
    if choice == 15:
        return "cancel_task", {"task_id": task_id, "reason": "not needed"}
    if choice == 16:
        return "requeue_task", {
            "task_id": task_id, "include_dependents": source.random() < 0.5,
        }  # fmt: skip
    if choice == 17:
        return "cancel_claim_wait", {"waiter_id": source.randrange(1, 40)}
    if choice == 18:
        return _rare(source, session_id)
    if held is None:
        return "noop", {}
    return _end(log, source, choice, held)


def _spec(source: random.Random, newest: int, position: int) -> dict[str, Any]:
    depends_on = []
    if source.random() < 0.4:
        depends_on = [
            f"t-{max(1, newest - source.randrange(12)):012d}" for _ in range(source.randrange(3))
        ]
        if position:
            depends_on.append(f"#{source.randrange(position)}")
    delay_ms = source.choice([0, 0, 5_000])
    return {
        "task_type": source.choice(["grade", "tutor"]),
        "affinity": source.choice(["math", "art", "general"]),
        "priority": source.randrange(-1, 2),
        "idempotency_key": source.choice(["", "", f"k{source.randrange(50)}"]),
        "delay_ms": delay_ms,
        "max_retries": source.randrange(3),
        "payload": source.randbytes(source.randrange(20)),
        "deadline_ms": source.choice([0, 0, delay_ms + 9_000]),
        "depends_on": depends_on,
    }


def _policy(source: random.Random) -> tuple[str, dict[str, Any]]:
    task_type = source.choice(["grade", "tutor"])
    if source.random() < 0.3:
        return "delete_task_policy", {"task_type": task_type}
    policy: dict[str, Any] = {"task_type": task_type}
    if source.random() < 0.7:
        policy["retention"] = {"seconds": source.choice([1, 8, 60])}
    if source.random() < 0.5:
        policy["claim_timeout"] = {"seconds": source.choice([5, 30])}
        policy["retry_jitter"] = 1.0
    if source.random() < 0.5:
        policy["final_error_types"] = ["fatal"]
    return "put_task_policy", policy


def _rare(source: random.Random, session_id: str) -> tuple[str, dict[str, Any]]:
    if source.random() < 0.3:
        return "deregister_session", {"session_id": session_id}
    if source.random() < 0.4:
        return _policy(source)
    change = source.choice(
        [
            ("task.ageing_interval", "0ms"),
            ("task.ageing_interval", "2s"),
            ("session.degraded_after", "10s"),
            ("session.degraded_after", "16s"),
            ("task.max_finished", "3"),
            ("task.max_finished", "20"),
            ("task.retention", "2s"),
            ("request.retention", "1m"),
        ]
    )
    return "update_settings", {"changes": [{"name": change[0], "value": change[1]}]}


def _end(log: Log, source: random.Random, choice: int, held: Any) -> tuple[str, dict[str, Any]]:
    claim = log.held(held)
    if choice == 19:
        return "extend_claim", {**claim, "progress_micro": 500_000, "checkpoint": b"so far"}
    if choice == 20:
        return "release_task", claim
    if choice == 21:
        failure = {**claim, "error": "boom", "permanent": source.random() < 0.2}
        failure["error_type"] = source.choice(["", "", "flaky", "fatal"])
        if source.random() < 0.3:
            failure["retry_delay_ms"] = source.choice([0, 700, 4_000])
        return "fail_task", failure
    session_id = claim.pop("session_id")
    completion = {**claim, "result": source.randbytes(6)}
    return "complete_tasks", {"session_id": session_id, "completions": [completion]}
