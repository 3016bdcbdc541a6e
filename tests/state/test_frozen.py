"""Copy on write, one record at a time; and that no change goes past it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from gaia_grpc.state.snapshot import Frozen, FrozenInOrder, list_section, single_section
from gaia_grpc.state.task_record import Task
from tests.state.harness import Log
from tests.state.snapshot_checks import rest_of, restored, whole

STATE = Path(__file__).resolve().parents[2] / "gaia_grpc" / "state"


class Names:
    """Records that count how often they are encoded."""

    def __init__(self, **names: str) -> None:
        self.names = dict(names)
        self.encoded: list[str] = []
        self.frozen = Frozen(self.names, self._encode)

    def _encode(self, key: str, name: str) -> bytes:
        self.encoded.append(key)
        return f"{key}={name}".encode()

    def put(self, key: str, name: str) -> None:
        self.frozen.changing(key)
        self.names[key] = name

    def remove(self, key: str) -> None:
        self.frozen.changing(key)
        del self.names[key]


def test_records_come_as_they_were_in_the_order_of_their_insertion() -> None:
    table = Names(b="1", a="2", c="3", d="4")
    records = table.frozen.freeze()
    table.put("c", "changed")
    table.remove("d")
    table.put("e", "new")
    assert list(records) == [b"b=1", b"a=2", b"c=3", b"d=4"]


def test_what_is_removed_and_added_again_is_another_record() -> None:
    table = Names(a="1", b="2")
    records = table.frozen.freeze()
    assert next(records) == b"a=1"
    for key in ("a", "b"):
        table.remove(key)
        table.put(key, "again")
        table.put(key, "and again")
    assert list(records) == [b"b=2"]
    table.frozen.thaw()
    assert list(table.frozen.freeze()) == [b"a=and again", b"b=and again"]


def test_nothing_is_encoded_twice_or_for_nothing() -> None:
    table = Names(a="1", b="2", c="3")
    table.put("a", "before")
    records = table.frozen.freeze()
    next(records)
    for _ in range(3):
        table.put("a", "behind its turn")
        table.put("b", "before its turn")
        table.put("n", "new since then")
    list(records)
    assert table.encoded == ["a", "b", "c"]
    table.frozen.thaw()
    table.put("b", "no snapshot")
    assert table.encoded == ["a", "b", "c"]


def test_numbers_that_grow_need_no_set_of_what_has_passed() -> None:
    records: dict[int, str] = {2: "two", 5: "five", 9: "nine"}
    encoded: list[int] = []

    def encode(number: int, name: str) -> bytes:
        encoded.append(number)
        return name.encode()

    frozen = FrozenInOrder(records, encode)
    frozen.changing(2)
    for _ in range(2):
        begun = frozen.freeze()
        assert next(begun) == records[2].encode()
        for number in (2, 5, 5, 7, 11, 11):  # over, to come, never there, new
            frozen.changing(number)
            if number != 7:
                records[number] = "changed"
        frozen.changing(9)
        del records[9]
        records[9] = "again"
        frozen.changing(9)
        assert list(begun) == [b"five", b"nine"]
        assert encoded == [2, 5, 9]
        frozen.thaw()
        records.clear()
        records.update({2: "two", 5: "five", 9: "nine"})
        encoded.clear()
    assert list(FrozenInOrder({}, encode).freeze()) == []


def test_a_change_that_nobody_told_of_may_break_the_snapshot_aloud() -> None:
    table = Names(a="1")
    records = table.frozen.freeze()
    del table.names["a"]
    with pytest.raises(KeyError):
        list(records)


def test_sections_look_at_the_state_when_the_snapshot_begins() -> None:
    items = [1, 2, 3]
    queue = list_section("x", lambda: list(items), bytes, lambda data: None, per_record=2)
    single = single_section("y", lambda: bytes(items), lambda data: None)
    frozen = [queue.freeze(), single.freeze()]
    items.append(4)
    assert [list(records) for records in frozen] == [[b"\x01\x02", b"\x03"], [b"\x01\x02\x03"]]


def test_only_the_store_sets_the_fields_of_a_task() -> None:
    # A field that is set elsewhere goes past the snapshot under way.
    fields = {name for name in Task.__slots__ if name != "timer"}
    allowed = {"task_store.py", "task_record.py", "task_snapshot.py"}
    found = [
        f"{path.name}:{node.lineno}"
        for path in sorted(STATE.glob("*.py"))
        if path.name not in allowed
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "task"
        and node.attr in fields
    ]
    assert found == []


def check_unchanged_by(log: Log, change: str, **body: object) -> None:
    """A command between the first and the last record leaves no trace in the snapshot."""
    expected = whole(log.machine)
    encoder = log.machine.begin_snapshot()
    log.do(**{change: body})
    assert whole(restored(rest_of(encoder))) == expected
    assert whole(log.machine) != expected


def test_a_requeued_task_is_in_the_snapshot_with_its_failed_attempts() -> None:
    log = Log()
    worker = log.register("w1")
    task_id = log.enqueue(max_retries=0)
    log.fail(log.claim(worker)[0], "boom")
    check_unchanged_by(log, "requeue_task", task_id=task_id)


def test_a_cancelled_task_is_in_the_snapshot_without_its_reason() -> None:
    log = Log()
    check_unchanged_by(log, "cancel_task", task_id=log.enqueue(), reason="not needed")


def test_a_failed_attempt_is_not_in_the_snapshot() -> None:
    log = Log()
    worker = log.register("w1")
    log.enqueue()
    claim = log.held(log.claim(worker)[0])
    check_unchanged_by(log, "fail_task", **claim, error="boom")


def test_an_extended_claim_is_in_the_snapshot_as_it_was() -> None:
    log = Log()
    worker = log.register("w1")
    log.enqueue()
    claim = log.held(log.claim(worker)[0])
    log.now_ms += 5
    check_unchanged_by(log, "extend_claim", **claim, progress_micro=1, checkpoint=b"half")
