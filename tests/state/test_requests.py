"""Repeated requests: the first final outcome is kept and told again."""

from __future__ import annotations

from typing import Any

from gaia.command.v1 import command_pb2

from tests.state.harness import Log

DIGEST = b"d" * 32


def command(request_id: str = "r1", digest: bytes = DIGEST, **fields: Any) -> dict[str, Any]:
    if not {"register_session", "advance_time", "update_settings"} & set(fields):
        fields["enqueue_tasks"] = {"tasks": [{"task_type": "grade"}]}
    return {
        "request_id": request_id,
        "client_id": "c1",
        "request_digest": digest,
        **fields,
    }


def test_a_repeated_request_changes_nothing_and_gets_the_first_result() -> None:
    log = Log()
    first = log.do(**command())
    log.advance(899_000)
    again = log.do(**command())
    assert again.repeated_from_index == 2
    again.ClearField("repeated_from_index")
    assert again == first
    assert log.stats().enqueued_total == 1


def test_the_same_id_with_other_content_is_refused_and_the_first_outcome_stays() -> None:
    log = Log()
    log.do(**command())
    refusal = log.refuse(**command(digest=b"e" * 32))
    assert refusal.kind == command_pb2.REFUSAL_KIND_ALREADY_EXISTS
    assert refusal.reason == "REQUEST_ID_REUSED"
    assert log.do(**command()).repeated_from_index == 2


def test_ids_are_scoped_by_principal_and_client() -> None:
    log = Log()
    for fields in ({}, {"client_id": "c2"}, {"principal": "p"}):
        assert log.do(**{**command(), **fields}).repeated_from_index == 0
    assert log.stats().enqueued_total == 3


def test_an_outcome_is_kept_for_15_minutes_of_log_time() -> None:
    log = Log()
    log.do(**command())
    log.advance(900_000 + 1_000)
    assert log.do(**command()).repeated_from_index == 0
    assert log.stats().enqueued_total == 2


def test_an_outcome_of_an_assigned_id_is_kept_for_a_minute() -> None:
    log = Log()
    log.do(**command("assigned", ingress_assigned=True))
    log.do(**command("given"))
    log.advance(61_000)
    assert log.do(**command("assigned", ingress_assigned=True)).repeated_from_index == 0
    assert log.do(**command("given")).repeated_from_index > 0


def test_final_refusals_are_kept() -> None:
    log = Log()
    log.register("worker")
    taken = command(register_session={"name": "worker", "max_concurrent_tasks": 1})
    first = log.refuse(**taken)
    log.advance(30_000)
    again = log.apply(command_pb2.Command(**taken))
    assert (again.refusal, again.repeated_from_index) == (first, 3)


def test_refusals_that_may_pass_are_not_kept() -> None:
    log = Log(("task.max_pending", "1"))
    session = log.register("worker", capacity=2)
    blocking = log.claim_result(session, wait_ms=0)
    assert not blocking.tasks
    log.enqueue()
    assert log.refuse(**command()).reason == "QUEUE_FULL"
    log.complete(log.claim(session)[0])
    assert log.do(**command()).repeated_from_index == 0


def test_a_full_table_refuses_and_evicts_nothing() -> None:
    log = Log(("request.max_entries", "2"))
    log.do(**command("a"))
    log.do(**command("b"))
    full = log.refuse(**command("c"))
    assert full.kind == command_pb2.REFUSAL_KIND_RESOURCE_EXHAUSTED
    assert full.retry_after_ms > 0
    assert log.do(**command("a")).repeated_from_index > 0
    log.advance(901_000)
    assert log.do(**command("c")).repeated_from_index == 0


def test_the_limit_of_a_full_table_can_be_raised() -> None:
    log = Log(("request.max_entries", "1"))
    log.do(**command("a"))
    assert log.refuse(**command("b")).reason == "REQUEST_TABLE_FULL"
    changes = [{"name": "request.max_entries", "value": "9"}]
    log.do(**command("raise", update_settings={"changes": changes}))
    assert log.do(**command("b")).repeated_from_index == 0


def test_commands_without_an_id_keep_nothing() -> None:
    log = Log(("request.max_entries", "1"))
    for _ in range(5):
        log.enqueue()
    assert log.stats().enqueued_total == 5


def test_a_sweep_does_bounded_work_and_goes_on_in_the_next() -> None:
    log = Log()
    for number in range(2_500):
        log.do(**command(f"r{number}", advance_time={}))
    log.now_ms += 902_000
    dropped = 0
    while (due_ms := log.machine.next_due_ms()) is not None:
        before = len(log.machine._requests)
        log.now_ms = max(log.now_ms, due_ms)
        log.do(advance_time={})
        assert before - len(log.machine._requests) <= 1_000
        dropped += before - len(log.machine._requests)
    assert dropped == 2_500
