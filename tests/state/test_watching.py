"""Watches: what their messages add up to is what a list shows, whatever happens meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
from gaia.command.v1 import query_pb2
from gaia.task.v1 import task_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia_grpc.state import changes as changes_module
from gaia_grpc.state.changes import ChangeLog
from gaia_grpc.state.context import Context
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.watching import Selection, Step, next_step
from tests.state.harness import Log
from tests.state.snapshot_checks import busy_log, restored, whole
from tests.state.watchers import CHANGED, COMPLETE, EXISTING, REMOVED, RESYNC, Watcher

TASK_FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"task_type": "grade"},
    {"affinity": "math"},
    {"state": task_pb2.TASK_STATE_PENDING},
    {"state": task_pb2.TASK_STATE_CLAIMED, "task_type": "tutor"},
    {"task_id": "t-000000000007"},
)
SESSION_FILTERS: tuple[dict[str, Any], ...] = ({}, {"health": 1}, {"provider": "local"})


@lru_cache(maxsize=4)
def entries_of(seed: int) -> list[tuple[int, bytes]]:
    """A busy log; making one costs more than replaying it."""
    return busy_log(seed, steps=150).entries


def replay(entries: Any) -> StateMachine:
    machine = StateMachine()
    for index, (kind, data) in enumerate(entries, start=1):
        machine.apply(index, kind, data)
    return machine


def listed(machine: StateMachine, noun: str, select: dict[str, Any]) -> dict[str, Any]:
    """What a list shows now of what the filter selects; the plain oracle."""
    return {
        key: record
        for key, record in all_records(machine, noun).items()
        if all(getattr(record, name) == value for name, value in select.items())
    }


def all_records(machine: StateMachine, noun: str) -> dict[str, Any]:
    body: dict[str, Any] = {f"list_{noun}s": {"page_size": 1_000}}
    data = machine.query(query_pb2.Query(**body).SerializeToString(), machine.elapsed_ms)
    answer = getattr(query_pb2.QueryResult.FromString(data), f"list_{noun}s")
    assert not answer.next_page_token
    return {getattr(record, f"{noun}_id"): record for record in getattr(answer, f"{noun}s")}


def without_heartbeat(records: dict[str, Any]) -> dict[str, Any]:
    """Heartbeats alone are no change, so a watcher may hold an older one."""
    bare = {}
    for key, record in records.items():
        copy = type(record)()
        copy.CopyFrom(record)
        if "last_heartbeat_time" in copy.DESCRIPTOR.fields_by_name:
            copy.ClearField("last_heartbeat_time")
        bare[key] = copy
    return bare


@pytest.mark.parametrize("kept", [5, 10_000])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 3), pace_seed=st.integers(0, 1_000))
def test_a_watch_replayed_is_the_list(kept: int, seed: int, pace_seed: int) -> None:
    """Watchers read now and then, a few records at a time; with a log of five changes they fall
    behind and start again."""
    entries = entries_of(seed)
    pace = random.Random(pace_seed)
    machine = StateMachine()
    for table in machine._tables:
        for log in (getattr(table, "_changes", None), getattr(table, "_store", None)):
            changes = getattr(log, "changes", log)
            if isinstance(changes, ChangeLog):
                changes._kept = kept
    watchers = [
        *(("task", select, Watcher("task", **select)) for select in TASK_FILTERS),
        *(("session", select, Watcher("session", **select)) for select in SESSION_FILTERS),
    ]
    for index, (kind, data) in enumerate(entries, start=1):
        machine.apply(index, kind, data)
        for _, _, watcher in watchers:
            if pace.random() < 0.3:
                watcher.step(machine)
    for noun, select, watcher in watchers:
        watcher.catch_up(machine)
        expected = without_heartbeat(listed(machine, noun, select))
        assert without_heartbeat(watcher.held) == expected, (noun, select)
        assert watcher.through_index <= machine.applied_index
        assert len(set(watcher.changes)) == len(watcher.changes), "a change was sent twice"
        if kept > 1_000:
            assert RESYNC not in watcher.kinds
            assert [at for _, at in watcher.changes] == sorted(at for _, at in watcher.changes)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 3), at=st.floats(0.2, 0.9), back=st.integers(0, 40))
def test_a_watch_goes_on_at_another_peer_that_came_out_of_a_snapshot(
    seed: int, at: float, back: int
) -> None:
    """It misses nothing: either the peer knows all changes since, or it sends the full picture."""
    entries = entries_of(seed)
    cut = max(2, int(len(entries) * at))
    first = replay(entries[:cut])
    watchers = [Watcher("task"), Watcher("session")]
    for watcher in watchers:
        watcher.catch_up(first)
        assert watcher.through_index
    snapshot_at = max(1, cut - back if back % 2 else min(cut + back, len(entries)))
    second = restored(whole(replay(entries[:snapshot_at])))
    for index, (kind, data) in enumerate(entries[snapshot_at:], start=snapshot_at + 1):
        second.apply(index, kind, data)
    for watcher in watchers:
        stood = watcher.through_index
        watcher.go_on(stood)
        watcher.catch_up(second)
        if snapshot_at > cut and stood < snapshot_at - 1:
            assert RESYNC in watcher.kinds
        if snapshot_at <= stood:
            assert RESYNC not in watcher.kinds
        expected = without_heartbeat(listed(second, watcher.noun, {}))
        assert without_heartbeat(watcher.held) == expected


def test_a_peer_that_lags_behind_a_watch_sends_nothing_old() -> None:
    log = Log()
    log.enqueue()
    lagging = replay(log.entries)
    log.enqueue()
    watcher = Watcher("task")
    watcher.catch_up(log.machine)
    kinds = list(watcher.kinds)
    watcher.go_on(watcher.through_index)
    watcher.catch_up(lagging)
    assert watcher.kinds == kinds
    kind, data = log.entries[-1]
    lagging.apply(len(log.entries), kind, data)
    watcher.catch_up(lagging)
    assert watcher.kinds == kinds


def test_a_task_is_sent_once_and_then_each_of_its_changes() -> None:
    log = Log()
    session_id = log.register("w")
    log.enqueue()
    log.enqueue()
    watcher = Watcher("task", limit=1)
    watcher.catch_up(log.machine)
    assert watcher.kinds == [EXISTING, EXISTING, COMPLETE]
    [task] = log.claim(session_id)
    watcher.catch_up(log.machine)
    assert watcher.held[task.task_id].state == task_pb2.TASK_STATE_CLAIMED
    log.complete(task)
    watcher.catch_up(log.machine)
    assert watcher.kinds[3:] == [CHANGED, CHANGED]
    assert watcher.through_index == log.machine.applied_index
    assert watcher.held[task.task_id].state == task_pb2.TASK_STATE_COMPLETED


def test_a_task_that_leaves_what_is_selected_is_removed() -> None:
    """Also where it is back before the watcher looks again, or gone for good."""
    log = Log(("task.retention", "1s"))
    session_id = log.register("w")
    log.enqueue()
    watcher = Watcher("task", state=task_pb2.TASK_STATE_PENDING)
    watcher.catch_up(log.machine)
    [task] = log.claim(session_id)
    log.do(release_task=log.held(task))
    watcher.catch_up(log.machine)
    assert watcher.kinds == [EXISTING, COMPLETE, REMOVED, CHANGED]
    [task] = log.claim(session_id)
    log.complete(task)
    log.advance(5_000)
    watcher.catch_up(log.machine)
    assert watcher.kinds[4:] == [REMOVED]
    assert watcher.held == {}


def test_a_session_that_takes_or_ends_a_task_changed() -> None:
    log = Log()
    session_id = log.register("w")
    log.enqueue()
    watcher = Watcher("session")
    watcher.catch_up(log.machine)
    [task] = log.claim(session_id)
    watcher.catch_up(log.machine)
    assert watcher.held[session_id].claimed_tasks == 1
    log.complete(task)
    watcher.catch_up(log.machine)
    assert watcher.held[session_id].claimed_tasks == 0
    log.beat(session_id)
    watcher.catch_up(log.machine)
    assert watcher.kinds == [EXISTING, COMPLETE, CHANGED, CHANGED]
    log.do(deregister_session={"session_id": session_id})
    watcher.catch_up(log.machine)
    assert watcher.held == {}


def test_one_change_among_100_000_tasks_costs_a_few_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counted: what apply notes, what a watch's step looks at, and what it reads."""
    log = Log(("task.max_pending", "1000000"))
    specs = [{"task_type": "grade", "affinity": "general"}] * 1_000
    for _ in range(100):
        log.do(enqueue_tasks={"tasks": specs})
    session_id = log.register("w")
    watcher = Watcher("task", limit=1_000)
    watcher.catch_up(log.machine)
    assert len(watcher.held) == 100_000
    changes = log.tasks()._store.changes
    assert len(changes) == changes_module.KEPT
    notes: list[int] = []
    steps: list[Step] = []
    noted: Callable[..., None] = ChangeLog.note

    def counted_note(self: Any, number: int, *rest: Any) -> None:
        notes.append(number)
        noted(self, number, *rest)

    def counted_step(*arguments: Any) -> Step:
        steps.append(next_step(*arguments))
        return steps[-1]

    monkeypatch.setattr(ChangeLog, "note", counted_note)
    monkeypatch.setattr("gaia_grpc.state.task_watch.next_step", counted_step)
    for _ in range(20):
        notes.clear()
        steps.clear()
        [task] = log.claim(session_id)
        log.complete(task)
        watcher.catch_up(log.machine)
        assert len(notes) <= 6
        assert sum(step.examined for step in steps) <= 3
        assert watcher.held[task.task_id].state == task_pb2.TASK_STATE_COMPLETED
    assert len(changes) == changes_module.KEPT
    assert len(changes._entries) <= changes_module.KEPT * 17 // 16 + 2
    assert len(changes._latest) <= changes_module.KEPT


def test_the_picture_keeps_up_with_changes_however_small_the_log_is() -> None:
    """A picture of 500 tasks, one a step, while every step has another change: the place moves on
    with each step, so a log of four changes is enough and the picture comes to its end."""
    log = Log()
    session_id = log.register("w", capacity=1_000)
    for _ in range(500):
        log.enqueue()
    log.tasks()._store.changes._kept = 4
    watcher = Watcher("task", limit=2)
    while watcher.step(log.machine):
        log.claim(session_id)
    assert RESYNC not in watcher.kinds
    assert COMPLETE in watcher.kinds
    watcher.catch_up(log.machine)
    assert len(watcher.held) == 500
    assert watcher.held == all_records(log.machine, "task")


def test_changes_of_one_entry_are_sent_in_pieces_and_each_once() -> None:
    log = Log()
    watcher = Watcher("task", limit=7)
    watcher.catch_up(log.machine)
    log.do(enqueue_tasks={"tasks": [{"task_type": "grade", "affinity": "general"}] * 100})
    assert watcher.step(log.machine)
    index = log.machine.applied_index
    assert watcher.through_index == index - 1
    watcher.catch_up(log.machine)
    assert watcher.through_index == index
    assert len(watcher.changes) == len(set(watcher.changes)) == 100


def test_several_changes_by_one_entry_are_one() -> None:
    context = Context()
    changes = ChangeLog[int, str](context)
    context.index = 5
    changes.note(1, None, 1)
    changes.note(2, 1, 2)
    changes.note(1, 1, 3)
    assert len(changes) == 2
    assert changes.at(0) == (5, 1, None, 3, None)
    selection = Selection[int, int](lambda _: (), lambda record: record, bool, lambda _, mark: True)
    step = next_step(changes, 5, None, 10, selection)
    assert step.place.complete


def test_of_quick_changes_of_one_task_the_last_is_sent_once() -> None:
    log = Log()
    session_id = log.register("w")
    log.enqueue()
    other = log.enqueue()
    watcher = Watcher("task")
    watcher.catch_up(log.machine)
    for _ in range(5):
        [task] = log.claim(session_id)
        log.do(release_task=log.held(task))
    [task] = log.claim(session_id)
    log.do(cancel_task={"task_id": other})
    cancelled_at = log.machine.applied_index
    log.complete(task)
    watcher.catch_up(log.machine)
    assert watcher.changes == [
        (other, cancelled_at),
        (task.task_id, log.machine.applied_index),
    ]
