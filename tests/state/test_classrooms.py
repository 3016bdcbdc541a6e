"""Classrooms through the machine: whole rosters, limits, pages, and snapshots of them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from gaia.classroom.v1 import classroom_pb2
from gaia.command.v1 import command_pb2

from gaia_grpc.state import classrooms
from tests.state.harness import Log
from tests.state.snapshot_checks import check_frozen, check_restored, restored, whole


def put(log: Log, classroom_id: str = "5b", **fields: Any) -> classroom_pb2.Classroom:
    return log.do(put_classroom={"classroom_id": classroom_id, **fields}).classroom


def get(log: Log, classroom_id: str = "5b") -> classroom_pb2.Classroom:
    return log.ask(get_classroom={"classroom_id": classroom_id}).get_classroom.classroom


def listed(log: Log, size: int = 0, **fields: Any) -> list[str]:
    """All pages."""
    found: list[str] = []
    token = ""
    while True:
        ask = {**fields, "page_size": size, "page_token": token}
        page = log.ask(list_classrooms=ask).list_classrooms
        found += [classroom.classroom_id for classroom in page.classrooms]
        token = page.next_page_token
        if not token:
            return found


def test_a_put_replaces_the_whole() -> None:
    log = Log()
    first = put(log, name="5b", teacher_ids=["t2", "t1", "t2"], student_ids=["s3", "s1"])
    assert first.name == "5b"
    assert (list(first.teacher_ids), list(first.student_ids)) == (["t1", "t2"], ["s1", "s3"])
    assert first.update_time.ToMilliseconds() == log.now_ms
    log.now_ms += 5_000
    assert put(log, name="5b", teacher_ids=["t1", "t2"], student_ids=["s1", "s3"]) == first
    second = put(log, student_ids=["s2"])
    assert second.name == ""
    assert (list(second.teacher_ids), list(second.student_ids)) == ([], ["s2"])
    assert second.update_time.ToMilliseconds() == log.now_ms
    assert get(log) == second
    assert listed(log, teacher_id="t1") == []


def test_lists_by_id_and_by_teacher_in_pages() -> None:
    log = Log()
    for number in random.Random(1).sample(range(30), 30):
        teachers = [f"t{number % 3}", "head"]
        put(log, f"room-{number:02d}", teacher_ids=teachers)
    everything = [f"room-{number:02d}" for number in range(30)]
    for size in (1, 7, 0):
        assert listed(log, size) == everything
        assert listed(log, size, teacher_id="head") == everything
        assert listed(log, size, teacher_id="t1") == everything[1::3]
    assert listed(log, teacher_id="nobody") == []
    put(log, "room-01", teacher_ids=["t0"])
    assert listed(log, teacher_id="t1") == everything[4::3]


def test_a_page_of_large_classrooms_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classrooms, "PAGE_MEMBERS", 4)
    log = Log()
    for number in range(5):
        put(log, f"r{number}", student_ids=[f"s{student}" for student in range(3)])
    page = log.ask(list_classrooms={}).list_classrooms
    assert [classroom.classroom_id for classroom in page.classrooms] == ["r0", "r1"]
    assert listed(log) == [f"r{number}" for number in range(5)]


def test_what_is_refused_changes_nothing() -> None:
    log = Log(("classroom.max_classrooms", "2"), ("classroom.max_members", "5"))
    put(log, "a", student_ids=["s1", "s2", "s3"])
    before = get(log, "a")
    assert log.refuse(put_classroom={}).field == "classroom_id"
    assert log.refuse(put_classroom={"classroom_id": "a", "student_ids": [""]}).field
    many = [f"s{number}" for number in range(10_001)]
    assert log.refuse(put_classroom={"classroom_id": "a", "student_ids": many}).field
    too_many = log.refuse(
        put_classroom={"classroom_id": "a", "teacher_ids": [f"t{n}" for n in range(1_001)]}
    )
    assert too_many.field == "teacher_ids"
    refusal = log.refuse(put_classroom={"classroom_id": "b", "student_ids": ["s1", "s2", "s4"]})
    assert (refusal.reason, refusal.retry_after_ms) == ("TOO_MANY_MEMBERS", 1_000)
    put(log, "b", teacher_ids=["t1", "t2"])
    assert log.refuse(put_classroom={"classroom_id": "c"}).reason == "TOO_MANY_CLASSROOMS"
    # What is too large already may shrink, and change its name.
    log.do(update_settings={"changes": [{"name": "classroom.max_members", "value": "1"}]})
    assert put(log, "a", name="smaller", student_ids=["s1"]).name == "smaller"
    assert before.student_ids == ["s1", "s2", "s3"]
    assert log.query(get_classroom={"classroom_id": "c"}).refusal.reason == "NOT_FOUND"


def test_a_repeated_put_is_answered_with_the_classroom_as_it_is() -> None:
    log = Log()
    request = {
        "put_classroom": command_pb2.PutClassroom(classroom_id="5b", student_ids=["s1", "s2"]),
        "request_id": "r1",
    }
    log.do(**request)
    entry = next(iter(log.machine._requests._entries.values()))
    assert b"s1" not in entry.outcome
    put(log, student_ids=["s3"])
    again = log.do(**request)
    assert again.classroom.student_ids == ["s3"]
    assert again.repeated_from_index == 2


def test_below_its_level_nothing_is_served() -> None:
    log = Log(level=2)
    for body in (
        {"put_classroom": {"classroom_id": "5b"}},
        {"delete_student_data": {"student_id": "ana"}},
    ):
        assert log.refuse(**body).kind == command_pb2.REFUSAL_KIND_UNIMPLEMENTED
    assert b"classroom.max_members" not in whole(log.machine)


def busy(seed: int) -> Log:
    """Rosters that come, change, and lose students, with requests kept."""
    source = random.Random(seed)
    log = Log(("classroom.max_classrooms", "12"))
    for step in range(120):
        if source.random() < 0.1:
            log.apply_fields(delete_student_data={"student_id": f"s{source.randrange(20):02d}"})
            continue
        body = {
            "classroom_id": f"room-{source.randrange(16):02d}",
            "name": source.choice(["", "x"]),
            "teacher_ids": [f"t{source.randrange(4)}" for _ in range(source.randrange(4))],
            "student_ids": [f"s{source.randrange(20):02d}" for _ in range(source.randrange(9))],
        }
        identity = {"request_id": f"r{step}"} if step % 3 else {}
        log.apply_fields(put_classroom=body, **identity)
        log.now_ms += source.choice([0, 1_000])
    return log


@pytest.mark.parametrize("seed", range(3))
def test_snapshots_of_classrooms(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classrooms, "PIECE_MEMBERS", 3)
    log = busy(seed)
    source = random.Random(seed)
    assert check_frozen(log.entries, 30, lambda: source.randrange(4)) >= 3
    for begin_at in (20, 70, 115):
        check_restored(log.entries, begin_at)
    before = listed(log)
    log.machine = restored(whole(log.machine))
    assert listed(log) == before == sorted(before)
    for teacher in range(4):
        expected = [room for room in listed(log) if f"t{teacher}" in get(log, room).teacher_ids]
        assert listed(log, teacher_id=f"t{teacher}") == expected


def test_a_full_roster_comes_out_of_a_snapshot() -> None:
    log = Log()
    made = put(
        log,
        teacher_ids=[f"t{number}" for number in range(1_000)],
        student_ids=[f"s{number}" for number in range(10_000)],
    )
    log.machine = restored(whole(log.machine))
    assert get(log) == made
