"""Snapshots of metrics and alerts: exact while commands are applied, and nobody can tell a restored
machine from one that never was."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from itertools import cycle, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia_grpc.state.machine import StateMachine
from tests.state import scenario
from tests.state.lessons import Lesson
from tests.state.snapshots import (
    Entry,
    Step,
    make_tiny_pieces,
    mixed_log,
    restored,
    step,
    whole_snapshot,
)

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 50
LOGS = ["mixed-0", "mixed-1", "mixed-2", "scenario-0", "scenario-1"]


@cache
def log(name: str) -> tuple[Entry, ...]:
    """A log by its name."""
    kind, _, seed = name.partition("-")
    lesson = mixed_log(int(seed)) if kind == "mixed" else scenario.run(int(seed), steps=200)
    return tuple(lesson.entries)


@cache
def history(name: str) -> tuple[tuple[Step, bytes], ...]:
    """What is seen after each entry, and a snapshot then, of a machine that just goes on."""
    machine = StateMachine()
    return tuple((step(machine, entry), whole_snapshot(machine)) for entry in log(name))


def replayed(entries: tuple[Entry, ...]) -> StateMachine:
    """A machine that has applied them."""
    machine = StateMachine()
    for entry in entries:
        step(machine, entry)
    return machine


def check_while_applying(name: str, first: int, records: int, expected: list[bytes]) -> int:
    """Takes `records` records after each entry from `first` on, one snapshot after another; returns
    how many were complete."""
    entries = log(name)
    machine = replayed(entries[:first])
    begun = first
    encoder = machine.begin_snapshot()
    taken: list[bytes] = []
    complete = 0
    for entry in entries[first:]:
        step(machine, entry)
        data = encoder.take(records)
        taken.append(data)
        if not data:
            assert b"".join(taken) == expected[begun], f"begun at {begun}"
            complete += 1
            begun = machine.applied_index
            encoder = machine.begin_snapshot()
            taken = []
    while data := encoder.take(records):
        taken.append(data)
    assert b"".join(taken) == expected[begun], f"begun at {begun}, to the end"
    return complete + 1


@pytest.mark.parametrize(("name", "records"), list(zip(LOGS, cycle((1, 4)), strict=False)))
def test_a_snapshot_taken_while_commands_are_applied_is_that_of_its_index(
    name: str, records: int
) -> None:
    expected = [whole_snapshot(StateMachine()), *(snapshot for _, snapshot in history(name))]
    step_size = 23 if records == 1 else 37
    for first in range(0, len(log(name)), step_size):
        assert check_while_applying(name, first, records, expected) >= 1


def test_pieces_of_a_window_that_changes_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "mixed-1"
    usual = sum(len(snapshot) for _, snapshot in history(name))
    make_tiny_pieces(monkeypatch)
    machine = StateMachine()
    expected = [whole_snapshot(machine)]
    for entry in log(name):
        step(machine, entry)
        expected.append(whole_snapshot(machine))
    assert sum(map(len, expected)) > usual
    for first in range(0, len(expected) - 1, 29):
        check_while_applying(name, first, 2, expected)


@pytest.mark.parametrize("name", LOGS)
def test_a_restored_machine_goes_on_as_if_it_never_was(name: str) -> None:
    entries, seen = log(name), history(name)
    for first in range(1, len(entries), 31):
        machine = restored(seen[first - 1][1], cut=1_000)
        assert whole_snapshot(machine) == seen[first - 1][1]
        assert machine.next_due_ms() == seen[first - 1][0].next_due_ms
        for place in range(first, len(entries)):
            assert step(machine, entries[place]) == seen[place][0], f"{first} -> {place}"
            if (place - first) % 29 == 0:
                assert whole_snapshot(machine) == seen[place][1], f"{first} -> {place}"
        assert whole_snapshot(machine) == seen[-1][1]


def test_restored_from_tiny_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = log("mixed-2")
    make_tiny_pieces(monkeypatch)
    snapshot = whole_snapshot(replayed(entries[:150]))
    machine = restored(snapshot, cut=7)
    assert whole_snapshot(machine) == snapshot
    monkeypatch.undo()
    assert whole_snapshot(machine) == history("mixed-2")[149][1]
    for place in range(150, len(entries)):
        assert step(machine, entries[place]) == history("mixed-2")[place][0]


def test_all_that_can_be_asked_is_the_same() -> None:
    lesson = scenario.run(5)
    before = scenario.answers(lesson)
    lesson.machine = restored(whole_snapshot(lesson.machine))
    assert scenario.answers(lesson) == before


def test_the_logs_reach_what_they_are_for() -> None:
    """Else the tests above could not fail: pieces, several timelines, evictions, lost events."""
    for name in ("mixed-0", "mixed-1", "mixed-2"):
        lesson = Lesson()
        lesson.machine = StateMachine()
        windows, known, gone = [0], [0], 0
        timelines, oldest = set(), 0
        for entry in log(name):
            lesson.apply_raw(*entry)
            table = lesson.metrics_table()
            windows.append(table._timelines.window_count)
            known.append(len(table._sources))
            gone += windows[-1] < windows[-2]
            timelines |= set(table._timelines._timelines)
            oldest = lesson.events(after=2**40).oldest_sequence
        assert gone >= 2
        assert max(windows) >= 15
        assert any(now < before for before, now in pairwise(known))
        assert timelines == {"", "t", "u", "v"}
        assert oldest > 30


EVENTS = st.tuples(
    st.sampled_from(["s0", "s1", "s2"]),
    st.sampled_from(["", "t"]),
    st.lists(
        st.tuples(
            st.sampled_from(["error", "correct", "keypress"]),
            st.sampled_from([0, 1, 2.5]),
            st.integers(-30_000, 2_000),
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([0, 0, 1_000, 5_000, 30_000, 1_000_000, 4_000_000]),
)


@settings(max_examples=40)
@given(st.lists(EVENTS, min_size=2, max_size=25), st.data())
def test_any_log_any_index_any_pace(
    events: list[tuple[str, str, list[tuple[str, float, int]], int]], data: st.DataObject
) -> None:
    lesson = Lesson(("metrics.window", "20s"), ("alert.retained_events", "4"))
    for student, timeline, samples, pause_ms in events:
        now = lesson.now_ms
        lesson.publish(
            [(kind, value, now + age) for kind, value, age in samples],
            student=student,
            timeline_id=timeline,
        )
        lesson.advance(pause_ms)
    entries = tuple(lesson.entries)
    begin = data.draw(st.integers(0, len(entries)))
    machine = replayed(entries[:begin])
    expected = whole_snapshot(machine)
    twin = restored(expected)
    encoder = machine.begin_snapshot()
    taken = []
    for entry in entries[begin:]:
        assert step(machine, entry) == step(twin, entry)
        taken.append(encoder.take(data.draw(st.integers(1, 4))))
    while piece := encoder.take(3):
        taken.append(piece)
    assert b"".join(taken) == expected
    assert whole_snapshot(machine) == whole_snapshot(twin)


def test_any_hash_seed_gives_the_same_snapshots() -> None:
    printed = []
    for hash_seed in ("0", "4711"):
        finished = subprocess.run(
            [sys.executable, "-m", "tests.state.snapshots"],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'generated'}",
            },
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
        printed.append(finished.stdout)
    assert len(printed[0].splitlines()) > 20
    assert printed[0] == printed[1]
