"""Snapshots of a machine that goes on, and machines that begin from one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from gaia.command.v1 import command_pb2, snapshot_pb2

from gaia_grpc.errors import InvariantError
from gaia_grpc.raft.types import EntryKind
from gaia_grpc.state.machine import StateMachine
from tests.state import scenario
from tests.state.harness import Log
from tests.state.lock_log import lock_log
from tests.state.replay_hash import mixed_log
from tests.state.snapshot_checks import (
    Entries,
    busy_log,
    check_equal,
    check_frozen,
    check_restored,
    rest_of,
    restored,
    timers,
    whole,
)

ROOT = Path(__file__).resolve().parents[2]

LOGS: dict[str, Callable[[int], Log]] = {
    "busy": busy_log,
    "mixed": lambda seed: mixed_log(seed, 250),
    "lesson": lambda seed: scenario.run(seed, 120),
    "locks": lambda seed: lock_log(seed, 250),
}


@cache
def entries_of(name: str, seed: int) -> Entries:
    """A log by its name."""
    return tuple(LOGS[name](seed).entries)


def machine_of(entries: Entries) -> StateMachine:
    machine = StateMachine()
    for index, (kind, data) in enumerate(entries, start=1):
        machine.apply(index, kind, data)
    return machine


def test_the_busy_log_meets_what_snapshots_must_keep() -> None:
    sections: dict[str, int] = {}
    seen: set[str] = set()
    for seed in range(4):
        machine = StateMachine()
        for index, (kind, data) in enumerate(entries_of("busy", seed), start=1):
            machine.apply(index, kind, data)
            name = command_pb2.Command.FromString(data).WhichOneof("body")
            seen.add(str(name))
            if index % 20:
                continue
            for record in records(whole(machine)):
                section = str(record.WhichOneof("body"))
                sections[section] = sections.get(section, 0) + 1
                seen.update(facts(record))
    assert sections["request"] > 50
    assert sections["session"] > 10
    assert sections["task"] > 50
    assert min(sections[name] for name in ("wait", "finished_tasks", "granted_waits")) > 3
    assert seen >= {"renamed wait", "grant", "due", "degraded", "failed", "claimed", "scheduled"}
    assert seen >= {"requeue_task", "cancel_task", "extend_claim", "fail_task", "release_task"}


def facts(record: snapshot_pb2.SnapshotRecord) -> set[str]:
    """What must have been among the records at least once."""
    found = set()
    if record.HasField("wait"):
        found.add("grant" if record.wait.granted_numbers else "wait")
        if record.wait.arrival != record.wait.waiter_id:
            found.add("renamed wait")
    if record.HasField("task_counters") and record.task_counters.finished_due_ms:
        found.add("due")
    found.add({2: "degraded", 3: "failed"}.get(record.session.health, ""))
    found.add({2: "scheduled", 3: "claimed"}.get(record.task.state, ""))
    return found


def records(data: bytes) -> list[snapshot_pb2.SnapshotRecord]:
    """The records, read as any protobuf library would."""
    found = []
    place = 0
    while place < len(data):
        size = shift = 0
        while True:
            byte = data[place]
            place += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        found.append(snapshot_pb2.SnapshotRecord.FromString(data[place : place + size]))
        place += size
    return found


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("seed", range(3))
def test_a_snapshot_is_what_it_was_at_its_index_whatever_is_applied(name: str, seed: int) -> None:
    entries = entries_of(name, seed)
    source = random.Random(seed)
    count = sum(
        check_frozen(entries, begin_at, lambda: source.choice([0, 0, 1, 1, 3]))
        for begin_at in range(2, 40, 11)
    )
    assert count >= 4


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("seed", range(3))
def test_a_snapshot_may_be_taken_as_late_as_one_likes(name: str, seed: int) -> None:
    # Every record that any of the commands touches is saved before its turn.
    entries = entries_of(name, seed)
    for begin_at in range(1, len(entries), max(1, len(entries) // 8)):
        assert check_frozen(entries, begin_at, lambda: 0) == 1


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("seed", range(3))
def test_a_restored_machine_goes_on_as_the_other_does(name: str, seed: int) -> None:
    entries = entries_of(name, seed)
    for begin_at in range(1, len(entries) + 1, max(1, len(entries) // 9)):
        check_restored(entries, begin_at)


def test_a_restored_machine_gives_the_same_snapshot_at_each_index() -> None:
    entries = busy_log(9, 80).entries
    machine = StateMachine()
    for index, (kind, data) in enumerate(entries, start=1):
        machine.apply(index, kind, data)
        check_equal(machine, restored(whole(machine)))


@pytest.mark.parametrize("name", LOGS)
def test_no_two_timers_differ_in_their_serial_numbers_alone(name: str) -> None:
    # Serial numbers are no state: a restored machine has others. They must never decide.
    machine = StateMachine()
    for index, (kind, data) in enumerate(entries_of(name, 1), start=1):
        machine.apply(index, kind, data)
        if index % 3 == 0:
            live = [(kind_of, key) for _, kind_of, key in timers(machine)]
            assert len(live) == len(set(live)), index


def test_a_hash_is_known_from_the_snapshot_on() -> None:
    entries = mixed_log(1, 50).entries
    machine = machine_of(entries)
    twin = restored(whole(machine))
    newest = machine.applied_index
    assert twin.state_hash(newest) == machine.state_hash(newest)
    assert twin.state_hash(newest - 1) is None
    for one in (machine, twin):
        one.apply(newest + 1, EntryKind.NOOP, b"")
    assert twin.state_hash() == machine.state_hash()


def test_one_snapshot_at_a_time() -> None:
    machine = machine_of(busy_log(2, 40).entries)
    encoder = machine.begin_snapshot()
    assert (encoder.index, encoder.state_hash) == machine.state_hash()
    with pytest.raises(InvariantError):
        machine.begin_snapshot()
    encoder.take(3)
    encoder.close()
    encoder.close()
    with pytest.raises(InvariantError):
        encoder.take(1)
    again = machine.begin_snapshot()
    assert rest_of(again, 2) == whole(machine)
    assert again.take(1) == b""


def test_a_slice_holds_as_many_records_as_are_asked_for() -> None:
    machine = machine_of(busy_log(3, 60).entries)
    encoder = machine.begin_snapshot()
    sizes = []
    while piece := encoder.take(5):
        sizes.append(len(records(piece)))
    assert set(sizes[:-1]) == {5}
    assert sum(sizes) == len(records(whole(machine)))


def test_what_was_given_up_leaves_no_trace() -> None:
    entries = busy_log(4, 200).entries
    machine = machine_of(entries[:100])
    machine.begin_snapshot().close()
    encoder = machine.begin_snapshot()
    encoder.take(7)
    for index, (kind, data) in enumerate(entries[100:], start=101):
        machine.apply(index, kind, data)
    encoder.close()
    check_equal(machine_of(entries), machine)


def test_an_empty_machine_has_a_snapshot() -> None:
    twin = restored(whole(StateMachine()))
    check_equal(StateMachine(), twin)


def test_hash_seeds_change_no_byte_of_a_snapshot() -> None:
    program = (
        "import hashlib, sys\n"
        "from tests.state.snapshot_checks import busy_log, whole\n"
        "from tests.state import scenario\n"
        "for log in (busy_log(5), scenario.run(5)):\n"
        "    sys.stdout.write(hashlib.sha256(whole(log.machine)).hexdigest() + '\\n')\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "generated")])
    printed = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONPATH": path, "PATH": os.environ["PATH"], "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=50,
            check=True,
        ).stdout
        for seed in ("0", "4711")
    ]
    assert printed[0] == printed[1]
    assert len(set(printed[0].split())) == 2
