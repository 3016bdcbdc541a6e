"""Enqueue: all or none, idempotency keys, limits, lists and counts."""

from __future__ import annotations

from typing import Any

import pytest
from gaia.command.v1 import command_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.state import task_queries, topics
from gaia_grpc.state.task_record import task_id_of, task_number_of
from tests.state.harness import START_MS, Log


def spec(task_type: str = "grade", **fields: Any) -> command_pb2.TaskSpec:
    return command_pb2.TaskSpec(task_type=task_type, affinity="general", **fields)


def enqueue(*tasks: command_pb2.TaskSpec) -> dict[str, Any]:
    return {"enqueue_tasks": command_pb2.EnqueueTasks(tasks=tasks)}


def test_a_task_is_kept_as_described() -> None:
    log = Log()
    result = log.do(
        **enqueue(
            spec(payload=b"essay", priority=-7, idempotency_key="k", max_retries=0),
            spec("tutor", delay_ms=2_000),
        )
    ).tasks
    first, second = result.tasks
    assert (first.task_id, second.task_id) == ("t-000000000001", "t-000000000002")
    assert list(result.existing) == [False, False]
    assert (first.payload, first.priority, first.max_retries) == (b"", -7, 0)
    assert (first.state, second.state) == (
        task_pb2.TASK_STATE_PENDING,
        task_pb2.TASK_STATE_SCHEDULED,
    )
    assert second.max_retries == 3
    assert second.available_time.ToMilliseconds() == START_MS + 2_000
    kept = log.task(first.task_id)
    assert (kept.payload, kept.idempotency_key) == (b"essay", "k")
    assert kept.create_time.ToMilliseconds() == START_MS
    assert [event.kind for event in kept.history] == [task_pb2.TASK_EVENT_KIND_ENQUEUED]
    assert topics.TASKS in log.machine.take_touched()


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"task_type": ""}, "tasks[1].task_type"),
        ({"priority": 1_001}, "tasks[1].priority"),
        ({"priority": -1_001}, "tasks[1].priority"),
        ({"max_retries": -1}, "tasks[1].max_retries"),
        ({"delay_ms": -1}, "tasks[1].delay"),
    ],
)
def test_one_bad_task_refuses_the_whole_batch(bad: dict[str, Any], field: str) -> None:
    log = Log()
    wrong = spec()
    wrong.MergeFrom(command_pb2.TaskSpec(**bad))
    if "task_type" in bad:
        wrong.ClearField("task_type")
    assert log.refuse(**enqueue(spec(), wrong)).field == field
    assert log.stats().enqueued_total == 0
    assert log.refuse(**enqueue()).field == "tasks"


@pytest.mark.parametrize("later", [{"deadline_ms": 5}, {"depends_on": ["t-000000000001"]}])
def test_below_its_level_it_is_refused_and_not_ignored(later: dict[str, Any]) -> None:
    refusal = Log(level=2).refuse(**enqueue(spec(**later)))
    assert refusal.kind == command_pb2.REFUSAL_KIND_UNIMPLEMENTED


def test_an_empty_affinity_is_general() -> None:
    log = Log()
    task_id = log.enqueue(affinity="")
    assert log.task(task_id).affinity == "general"


@pytest.mark.parametrize("digest", [b"", b"d" * 32], ids=["own digest", "given digest"])
def test_a_known_key_with_the_same_content_is_the_same_task(digest: bytes) -> None:
    log = Log()
    same = spec(payload=b"x", idempotency_key="k", content_digest=digest)
    first = log.do(**enqueue(same)).tasks
    again = log.do(**enqueue(spec(), same, same)).tasks
    assert list(again.existing) == [False, True, True]
    assert again.tasks[1].task_id == again.tasks[2].task_id == first.tasks[0].task_id
    assert log.stats().enqueued_total == 2


def test_a_key_twice_in_one_batch_is_one_task() -> None:
    log = Log()
    same = spec(idempotency_key="k")
    result = log.do(**enqueue(same, spec(idempotency_key="other"), same)).tasks
    assert list(result.existing) == [False, False, True]
    assert result.tasks[0].task_id == result.tasks[2].task_id
    assert log.stats().enqueued_total == 2


def test_a_known_key_with_other_content_is_refused_and_nothing_is_added() -> None:
    log = Log()
    log.do(**enqueue(spec(payload=b"x", idempotency_key="k")))
    refusal = log.refuse(**enqueue(spec(), spec(payload=b"y", idempotency_key="k")))
    assert refusal.kind == command_pb2.REFUSAL_KIND_ALREADY_EXISTS
    assert refusal.reason == "IDEMPOTENCY_KEY_REUSED"
    assert refusal.field == "tasks[1].idempotency_key"
    assert [(d.key, d.value) for d in refusal.details] == [("task_id", "t-000000000001")]
    inside = log.refuse(**enqueue(*(spec(payload=p, idempotency_key="n") for p in (b"a", b"b"))))
    assert (inside.reason, list(inside.details)) == ("IDEMPOTENCY_KEY_REUSED", [])
    assert log.stats().enqueued_total == 1


def test_keys_belong_to_their_principal() -> None:
    log = Log()
    for principal in ("alice", "bob"):
        command = {"principal": principal, **enqueue(spec(idempotency_key="k"))}
        assert list(log.do(**command).tasks.existing) == [False]


def test_a_key_holds_after_completion_until_the_task_is_purged() -> None:
    log = Log(("task.retention", "1m"))
    session = log.register("worker")
    task_id = log.enqueue(idempotency_key="k")
    done = log.complete(log.claim(session)[0], result=b"A+").task
    assert done.state == task_pb2.TASK_STATE_COMPLETED
    again = log.do(**enqueue(spec(idempotency_key="k"))).tasks
    assert (again.tasks[0].task_id, list(again.existing)) == (task_id, [True])
    assert log.task(task_id).result == b"A+"
    log.advance(61_000)
    assert log.query(get_task={"task_id": task_id}).refusal.reason == "NOT_FOUND"
    assert list(log.do(**enqueue(spec(idempotency_key="k"))).tasks.existing) == [False]
    assert log.stats().completed == 0
    assert log.stats().completed_total == 1


def test_a_full_queue_refuses_the_whole_batch() -> None:
    log = Log(("task.max_pending", "3"))
    log.enqueue()
    log.enqueue(delay_ms=1_000)
    refusal = log.refuse(**enqueue(spec(), spec()))
    assert (refusal.kind, refusal.reason) == (
        command_pb2.REFUSAL_KIND_RESOURCE_EXHAUSTED,
        "QUEUE_FULL",
    )
    assert refusal.retry_after_ms > 0
    log.enqueue(idempotency_key="k")
    log.enqueue(idempotency_key="k")  # needs no room


def test_only_so_many_finished_tasks_are_kept() -> None:
    log = Log(("task.max_finished", "2"))
    ids = [log.enqueue() for _ in range(4)]
    for task_id in ids:
        log.do(cancel_task={"task_id": task_id})
    assert [task.task_id for task in log.ask(list_tasks={}).list_tasks.tasks] == ids[2:]
    assert log.stats().cancelled == 2


def test_a_requeued_task_is_not_purged_for_its_former_end() -> None:
    log = Log(("task.retention", "10s"))
    session = log.register("worker")
    task_id = log.enqueue()
    log.do(cancel_task={"task_id": task_id})
    log.advance(5_000)
    log.do(requeue_task={"task_id": task_id})
    log.advance(7_000)
    assert log.task(task_id).state == task_pb2.TASK_STATE_PENDING
    log.complete(log.claim(session)[0])
    log.advance(9_000)
    assert log.task(task_id).state == task_pb2.TASK_STATE_COMPLETED
    log.advance(2_000)
    assert not log.ask(list_tasks={}).list_tasks.tasks


def test_lists_are_pages_with_filters() -> None:
    log = Log()
    session = log.register("worker", capacity=9)
    ids = [log.enqueue("even" if number % 2 else "odd") for number in range(7)]
    seen: list[str] = []
    query: dict[str, Any] = {"page_size": 3}
    for _ in range(3):
        page = log.ask(list_tasks=query).list_tasks
        seen += [task.task_id for task in page.tasks]
        query["page_token"] = page.next_page_token
    assert (seen, query["page_token"]) == (ids, "")
    claimed = [task.task_id for task in log.claim(session, 3)]

    def listed(**select: Any) -> list[str]:
        return [task.task_id for task in log.ask(list_tasks=select).list_tasks.tasks]

    assert listed(task_type="even") == ids[1::2]
    assert listed(state=task_pb2.TASK_STATE_CLAIMED) == claimed == ids[:3]
    assert listed(claimed_by=session) == claimed
    assert listed(claimed_by=session, task_type="even") == [ids[1]]
    assert listed(claimed_by="s-000000000099") == []
    first = log.ask(list_tasks={"claimed_by": session, "page_size": 2}).list_tasks
    rest = {"claimed_by": session, "page_size": 2, "page_token": first.next_page_token}
    assert listed(**rest) == [ids[2]]


def test_a_page_of_long_errors_fits_into_an_answer() -> None:
    log = Log()
    ids = [log.enqueue() for _ in range(1_000)]
    for task_id in ids:
        log.do(cancel_task={"task_id": task_id, "reason": "ü" * 4_096})
    found: list[str] = []
    page = log.ask(list_tasks={"page_size": 1_000}).list_tasks
    while True:
        assert page.ByteSize() < 4 << 20
        found += [task.task_id for task in page.tasks]
        if not page.next_page_token:
            break
        token = page.next_page_token
        page = log.ask(list_tasks={"page_size": 1_000, "page_token": token}).list_tasks
    assert found == ids


def test_a_page_of_rare_tasks_ends_early_with_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_queries, "EXAMINED_PER_PAGE", 10)
    log = Log()
    ids = [log.enqueue("rare" if number == 24 else "common") for number in range(26)]
    pages: list[list[str]] = []
    query: dict[str, Any] = {"task_type": "rare"}
    while not pages or query["page_token"]:
        page = log.ask(list_tasks=query).list_tasks
        pages.append([task.task_id for task in page.tasks])
        query["page_token"] = page.next_page_token
    assert pages == [[], [], [ids[24]]]


def test_lists_skip_what_was_purged_without_walking_it() -> None:
    log = Log(("task.max_finished", "1"))
    for _ in range(3):
        tasks = log.do(**enqueue(*[spec() for _ in range(1_024)])).tasks.tasks
        for task in tasks:
            log.do(cancel_task={"task_id": task.task_id})
    last = log.enqueue()
    store = log.tasks()._store
    assert len(store._runs) <= 2
    assert [task.task_id for task in log.ask(list_tasks={}).list_tasks.tasks][-1] == last


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "t-",
        "t-1",
        "s-000000000001",
        "t-00000000000x",
        "t-" + 11 * "\u0660" + "\u0661",
        "t-" + "9" * 40,
    ],
)
def test_an_id_that_is_none_of_ours_is_not_found(bad: str) -> None:
    assert task_number_of(bad) == 0
    assert Log().query(get_task={"task_id": bad}).refusal.reason == "NOT_FOUND"


def test_ids_go_on_beyond_twelve_digits() -> None:
    assert task_number_of(task_id_of(10**13)) == 10**13
