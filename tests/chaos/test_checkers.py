"""Each checker passes a history that is right, and finds the one thing that is made wrong in it."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from gaia.cluster.v1 import cluster_pb2
from gaia.command.v1 import command_pb2
from gaia.metrics.v1 import metrics_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.state.machine import StateMachine
from tests.chaos.caller import SETTING, milliseconds
from tests.chaos.end_checks import (
    StudentTotals,
    check_availability,
    check_hygiene,
    check_linearizable,
    check_log,
    check_metrics,
    check_settings,
    check_streams,
)
from tests.chaos.history import Call, History, Outcome
from tests.chaos.log_record import LogRecord, Stored, command_identities
from tests.chaos.queue_checks import check_durable, check_intervals, check_once, check_tokens
from tests.chaos.streams import Received
from tests.chaos.witness import (
    Check,
    check_answers,
    check_effects,
    check_places,
    check_reads,
    check_real_time,
    replay,
)

CLAIMED = task_pb2.TASK_EVENT_KIND_CLAIMED
COMPLETED = task_pb2.TASK_EVENT_KIND_COMPLETED
RELEASED = task_pb2.TASK_EVENT_KIND_RELEASED


def call(kind: str, key: str, at: float, **fields: Any) -> Call:
    """A call that took half a second and, unless told otherwise, succeeded."""
    given = {"outcome": Outcome.OK, "returned_at": at + 0.5, "term": 1, **fields}
    return Call("c", kind, key, "n1", at, **given)


def fails(check: Check, *words: str) -> None:
    assert check.violations, f"{check.name} found nothing"
    assert not check.passed
    for word in words:
        assert any(word in violation for violation in check.violations), check.violations


def passes(check: Check) -> None:
    assert check.passed, check.violations


# --- the log as witness --------------------------------------------------------------------------


class Story:
    """A small log with its history: founding, a task, a claim, two checkpoints, the end."""

    def __init__(self) -> None:
        self.record = LogRecord()
        self.history = History()
        self.machine = StateMachine()
        self.add(found_cluster=command_pb2.FoundCluster(cluster_id="c1"))
        self.add(
            "s",
            register_session=command_pb2.RegisterSession(
                name="w", specialty="general", max_concurrent_tasks=3
            ),
        )
        spec = command_pb2.TaskSpec(task_type="job", payload=b"p1", affinity="general")
        self.add("e", enqueue_tasks=command_pb2.EnqueueTasks(tasks=[spec]))
        self.task_id = "t-000000000001"
        self._call("enqueue_task", "p1", {"payload": "p1"}, {"task_id": self.task_id}, "e")
        session_id = "s-000000000001"
        claim = command_pb2.ClaimTasks(session_id=session_id, max_tasks=1)
        self.add("k", claim_tasks=claim)
        self._call("claim_tasks", "job", {}, {"tasks": [[self.task_id, 1]]}, "k")
        for value in ("v1", "v2"):
            extend = command_pb2.ExtendClaim(
                task_id=self.task_id, claim_token=1, session_id=session_id,
                checkpoint=value.encode(),
            )  # fmt: skip
            self.add(extend_claim=extend)
            told = {"checkpoint": value, "claim_token": 1}
            answer = {"task_id": self.task_id, "claim_token": 1}
            self._call("extend_claim", self.task_id, told, answer)
            seen = {"checkpoint": value, "result": None}
            self.read = call("get_task", self.task_id, self.now + 0.6, answer=seen)
            self.history.add(self.read)
        change = cluster_pb2.SettingChange(name=SETTING, value="7s")
        self.add("u", update_settings=command_pb2.UpdateSettings(changes=[change]))
        self._call("update_settings", SETTING, {"value": 7000}, {"version": 1, "value": 7000}, "u")

    @property
    def now(self) -> float:
        return float(2 * self.record.last_index)

    def add(self, request_id: str = "", **body: Any) -> None:
        command = command_pb2.Command(request_id=request_id, elapsed_ms=1, wall_ms=1, **body)
        data = command.SerializeToString()
        index = self.record.last_index + 1
        self.machine.apply(index, 2, data)
        self.record.shown[index] = (1, 2, hashlib.sha256(data).digest())
        self.record.content[index] = Stored(index, 1, 2, data)

    def _call(
        self,
        kind: str,
        key: str,
        argument: dict[str, Any],
        answer: dict[str, Any],
        request_id: str = "",
    ) -> None:
        index = self.record.last_index
        made = call(
            kind, key, self.now, argument=argument, answer=answer, index=index,
            request_id=request_id,
        )  # fmt: skip
        self.history.add(made)

    def checks(self) -> dict[str, Check]:
        replayed = replay(self.record, self.record.last_index)
        found = [
            check_real_time(self.history),
            check_places(self.history, self.record),
            check_answers(self.history, replayed),
            check_reads(self.history, self.record, replayed, (0, 30_000)),
            check_linearizable(self.history, (0, 30_000)),
            check_effects(self.history, self.record, replayed),
        ]
        return {check.name: check for check in found}

    def of(self, kind: str) -> list[Call]:
        return self.history.of(kind)


def test_a_true_story_passes_every_check() -> None:
    story = Story()
    for check in story.checks().values():
        passes(check)
    index, state_hash = story.machine.state_hash() or (0, b"")
    assert replay(story.record, index).state_hash == state_hash


def test_an_index_against_real_time_is_found() -> None:
    story = Story()
    first, second = story.of("extend_claim")
    first.index, second.index = second.index, first.index
    fails(story.checks()["real time"], "had returned when")


def test_an_answer_that_names_another_place_is_found() -> None:
    story = Story()
    story.of("extend_claim")[0].argument["checkpoint"] = "something else"
    fails(story.checks()["log places"], "does not stand at its index")


def test_a_term_that_the_log_does_not_have_is_found() -> None:
    story = Story()
    story.of("extend_claim")[0].term = 3
    fails(story.checks()["log places"], "names term 3")


def test_a_definite_failure_that_is_in_the_log_is_found() -> None:
    story = Story()
    story.of("extend_claim")[1].outcome = Outcome.FAILED
    fails(story.checks()["log places"], "failed for sure, but is in the log")


def test_an_answer_that_the_log_does_not_give_is_found() -> None:
    story = Story()
    story.of("claim_tasks")[0].answer["tasks"] = [["t-000000000001", 9]]
    fails(story.checks()["answers = replay"], "should have been answered with")


def test_a_stale_read_is_found_by_the_log_and_by_the_search() -> None:
    story = Story()
    story.read.answer["checkpoint"] = "v1"
    checks = story.checks()
    fails(checks["reads"], "saw ('v1', None)")
    fails(checks["linearizability"], "no order")


def test_a_read_from_the_future_is_found() -> None:
    story = Story()
    story.of("get_task")[0].answer["checkpoint"] = "v2"
    checks = story.checks()
    fails(checks["reads"])
    fails(checks["linearizability"])


def test_a_checkpoint_that_is_stored_twice_around_another_is_found() -> None:
    story = Story()
    again = command_pb2.ExtendClaim(
        task_id=story.task_id, claim_token=1, session_id="s-000000000001", checkpoint=b"v1"
    )
    story.add(extend_claim=again)
    fails(story.checks()["effects once"], "'v1') was stored at", "again at")
    story.history.add(story.of("extend_claim")[0])  # the client itself asked twice: so be it
    passes(story.checks()["effects once"])


def test_a_committed_entry_that_changes_is_found() -> None:
    record = LogRecord()
    entry = cluster_pb2.LogEntry(index=1, term=1, kind=cluster_pb2.LOG_ENTRY_KIND_NOOP)
    record.note("n1", [entry])
    passes(check_log(record, {"n1": "aa", "n2": "aa"}, "aa"))
    record.note("n2", [cluster_pb2.LogEntry(index=1, term=2, kind=entry.kind)])
    fails(check_log(record, {"n1": "aa", "n2": "aa"}, ""), "n2 now shows term 2")


def test_a_disk_that_differs_from_the_others_is_found(tmp_path: Path) -> None:
    record = LogRecord()
    record.shown = {1: (1, 2, b""), 2: (1, 2, b"")}
    for node_id, data in (("n1", b"same"), ("n2", b"other")):
        (tmp_path / node_id).mkdir()
        with sqlite3.connect(tmp_path / node_id / "raft.db") as database:
            database.execute("CREATE TABLE entries(log_index, term, kind, data)")
            # Entry 2 of term 3 was never committed, so it may differ.
            database.executemany(
                "INSERT INTO entries VALUES (?, ?, 2, ?)", [(1, 1, data), (2, 3, data)]
            )
        database.close()
        record.take_disk(node_id, tmp_path / node_id)
    record.settle()
    assert list(record.content) == [1]
    assert not record.is_complete
    fails(check_log(record, {"n1": "aa"}, ""), "entry 1 of term 1 differs on the disk of n2")


@pytest.mark.parametrize("hashes", [{"n1": "aa", "n2": "bb"}, {"n1": "", "n2": ""}])
def test_hashes_that_differ_or_are_missing_are_found(hashes: dict[str, str]) -> None:
    fails(check_log(LogRecord(), hashes, ""), "differ")


def test_a_replay_with_another_hash_is_found() -> None:
    fails(check_log(LogRecord(), {"n1": "aa"}, "bb"), "replay")


def test_commands_without_request_id_are_told_apart_by_their_content() -> None:
    batch = command_pb2.PackedBatch(source_id="a", source_epoch=1, sequence=2)
    command = command_pb2.Command(publish_metrics=command_pb2.PublishMetrics(batches=[batch]))
    assert command_identities(command) == [("batch", "a/1/2")]
    extend = command_pb2.ExtendClaim(task_id="t1", claim_token=2, checkpoint=b"v")
    assigned = command_pb2.Command(extend_claim=extend, request_id="r", ingress_assigned=True)
    assert command_identities(assigned) == [("extend", "t1", 2, "v")]
    assigned.ingress_assigned = False
    assert command_identities(assigned) == [("request", "r")]
    assert command_identities(command_pb2.Command(advance_time=command_pb2.AdvanceTime())) == []


# --- registers -----------------------------------------------------------------------------------


def test_two_changes_that_made_one_version_are_found() -> None:
    def changes(second: int) -> History:
        return History(
            [
                call("update_settings", SETTING, 1, request_id="a", argument={"value": 5},
                     answer={"version": 1, "value": 5}),
                call("update_settings", SETTING, 2, request_id="b",
                     argument={"value": 6, "expected": second - 1},
                     answer={"version": second, "value": 6}),
            ]
        )  # fmt: skip

    passes(check_settings(changes(2)))
    fails(check_settings(changes(1)), "made the same version")
    wrong = changes(2)
    wrong.calls[1].argument["expected"] = 7
    fails(check_settings(wrong), "at another version")


@pytest.mark.parametrize(
    ("text", "value"),
    [("30s", 30_000), ("1000.001s", 1_000_001), ("250ms", 250), ("1h", 3_600_000)],
)
def test_durations_are_compared_as_numbers(text: str, value: int) -> None:
    assert milliseconds(text) == value


# --- the queue -----------------------------------------------------------------------------------


def stored_task(payload: str = "p1", number: int = 1, **fields: Any) -> task_pb2.Task:
    return task_pb2.Task(task_id=f"t{number}", payload=payload.encode(), **fields)


def enqueued(payload: str = "p1", number: int = 1, **fields: Any) -> Call:
    given = {"argument": {"payload": payload}, "answer": {"task_id": f"t{number}"}, **fields}
    return call("enqueue_task", payload, 1, **given)


def test_a_lost_task_is_found() -> None:
    history = History([enqueued()])
    passes(check_durable(history, {"n1": [stored_task()], "n2": [stored_task()]}))
    fails(check_durable(history, {"n1": [stored_task()], "n2": []}), "is not on n2")
    fails(check_durable(history, {"n1": [stored_task("other")]}), "another payload")


def test_a_lost_completion_is_found() -> None:
    history = History([call("complete_task", "t1", 1, argument={"result": "r", "claim_token": 1})])
    done = task_pb2.TASK_STATE_COMPLETED
    passes(check_durable(history, {"n1": [stored_task(state=done, result=b"r")]}))
    fails(check_durable(history, {"n1": [stored_task()]}), "is not completed")
    fails(check_durable(history, {"n1": [stored_task(state=done, result=b"x")]}), "another result")


def test_a_task_that_is_there_twice_is_found() -> None:
    history = History([enqueued()])
    passes(check_once(history, [stored_task()]))
    fails(check_once(history, [stored_task(), stored_task(number=2)]), "applied 2 times")
    fails(check_once(history, [stored_task("ghost")]), "nobody asked for it")
    fails(check_once(History([enqueued(), enqueued(number=2)]), [stored_task()]), "several tasks")


def test_a_failed_task_that_is_there_is_found() -> None:
    failed = History([enqueued(outcome=Outcome.FAILED)])
    passes(check_once(failed, []))
    fails(check_once(failed, [stored_task()]), "failed for sure")
    unknown = History([enqueued(outcome=Outcome.UNKNOWN)])
    passes(check_once(unknown, [stored_task()]))
    passes(check_once(unknown, []))


def with_events(*events: tuple[int, int], completed: bool = False) -> task_pb2.Task:
    state = task_pb2.TASK_STATE_COMPLETED if completed else task_pb2.TASK_STATE_PENDING
    kinds = task_pb2.TaskEventKind
    return stored_task(
        state=state,
        history=[
            task_pb2.TaskEvent(kind=kinds.ValueType(kind), claim_token=token)
            for kind, token in events
        ],
    )


def test_claims_that_overlap_are_found() -> None:
    passes(
        check_intervals(
            [with_events((CLAIMED, 1), (RELEASED, 1), (CLAIMED, 2), (COMPLETED, 2), completed=True)]
        )
    )
    fails(check_intervals([with_events((CLAIMED, 1), (CLAIMED, 2))]), "while 1 held it")
    fails(check_intervals([with_events((CLAIMED, 1), (RELEASED, 2))]), "2 ended while 1 held it")


def test_a_token_that_does_not_grow_is_found() -> None:
    task = with_events((CLAIMED, 2), (RELEASED, 2), (CLAIMED, 2), (RELEASED, 2))
    fails(check_intervals([task]), "token 2 after 2")


def test_two_completions_of_a_task_are_found() -> None:
    task = with_events((CLAIMED, 1), (COMPLETED, 1), (CLAIMED, 2), (COMPLETED, 2), completed=True)
    fails(check_intervals([task]), "2 completions")


def claim(token: int, at: float, request_id: str, index: int = 0) -> Call:
    return call(
        "claim_tasks", "job", at, request_id=request_id, answer={"tasks": [["t1", token]]},
        index=index,
    )  # fmt: skip


def test_one_claim_for_two_is_found() -> None:
    passes(check_tokens(History([claim(1, 1, "a"), claim(1, 2, "a"), claim(2, 3, "b")])))
    fails(check_tokens(History([claim(1, 1, "a"), claim(1, 2, "b")])), "got claim 1 of a")
    fails(check_tokens(History([claim(2, 1, "a"), claim(1, 2, "b")])), "older token")


def test_a_stale_token_that_is_accepted_is_found() -> None:
    def use(at: float, **fields: Any) -> Call:
        argument = {"claim_token": 1, "checkpoint": "x"}
        return call("extend_claim", "t1", at, argument=argument, **fields)

    claims = [claim(1, 1, "a"), claim(2, 3, "b")]
    passes(check_tokens(History([*claims, use(2)])))
    passes(check_tokens(History([*claims, use(4, outcome=Outcome.REFUSED)])))
    fails(check_tokens(History([*claims, use(4)])), "was accepted after")


def test_two_accepted_completions_are_found() -> None:
    def end(token: int, result: str) -> Call:
        return call("complete_task", "t1", token, argument={"claim_token": token, "result": result})

    passes(check_tokens(History([end(1, "r"), end(1, "r")])))
    fails(check_tokens(History([end(1, "r"), end(2, "s")])), "were all accepted")


# --- streams, sums, time -------------------------------------------------------------------------

EVENTS = [(1, b"a"), (2, b"b"), (3, b"c")]


@pytest.mark.parametrize(
    ("events", "word"),
    [
        ([(1, b"a"), (3, b"c")], "got 2 events, not the 3"),
        ([(1, b"a"), (2, b"b"), (2, b"b"), (3, b"c")], "twice or out of order"),
        ([(1, b"a"), (3, b"c"), (2, b"b")], "twice or out of order"),
        ([(1, b"a"), (2, b"B"), (3, b"c")], "not the 3 of the peers"),
    ],
)
def test_a_stream_that_misses_repeats_or_changes_events_is_found(
    events: list[tuple[int, bytes]], word: str
) -> None:
    stored = {"n1": EVENTS, "n2": EVENTS}
    passes(check_streams([Received("l1", list(EVENTS))], stored))
    fails(check_streams([Received("l1", events)], stored), word)


def test_events_that_differ_between_peers_or_have_gaps_are_found() -> None:
    fails(check_streams([], {"n1": EVENTS, "n2": EVENTS[:2]}), "n2 has other events")
    fails(check_streams([], {"n1": EVENTS[1:]}), "have gaps")
    passes(check_streams([], {"n1": EVENTS[1:]}, {"n1": EVENTS[:1]}))
    both = {"n1": EVENTS[1:], "n2": EVENTS[1:]}
    fails(check_streams([], both, {"n1": EVENTS[:1]}), "n2 has other events")
    refused = Received("l1", list(EVENTS), refusals=["n1: INTERNAL"])
    fails(check_streams([refused], {"n1": EVENTS}), "INTERNAL")


def published(outcome: Outcome = Outcome.OK, key: str = "a/1/1") -> Call:
    argument = {"student": "s", "metrics": 3, "sum": 6.0}
    answer = {"status": [int(metrics_pb2.BATCH_STATUS_ACCEPTED)]}
    return call("publish_metrics", key, 1, argument=argument, answer=answer, outcome=outcome)


@pytest.mark.parametrize(
    ("totals", "word"),
    [
        (StudentTotals(0, 0, 0, 0.0), "sent"),
        (StudentTotals(6, 0, 6, 12.0), "sent"),
        (StudentTotals(3, 0, 2, 6.0), "window"),
        (StudentTotals(3, 0, 3, 5.0), "window"),
    ],
)
def test_metrics_that_are_lost_doubled_or_changed_are_found(
    totals: StudentTotals, word: str
) -> None:
    calls = [published(), published()]
    passes(check_metrics(calls, {"n1": {"s": StudentTotals(3, 0, 3, 6.0)}}))
    passes(check_metrics(calls, {"n1": {"s": StudentTotals(2, 1, 2, 5.0)}}))
    fails(check_metrics(calls, {"n1": {"s": totals}}), word)


def test_a_batch_of_unknown_outcome_may_count_or_not() -> None:
    calls = [published(), published(Outcome.UNKNOWN, "a/1/2")]
    for count in (3, 6):
        passes(check_metrics(calls, {"n1": {"s": StudentTotals(count, 0, count, 2.0 * count)}}))
    fails(check_metrics(calls, {"n1": {"s": StudentTotals(2, 0, 2, 4.0)}}), "sent")


def writes(*times: float) -> History:
    return History([call("enqueue_task", "k", at - 0.5, index=1) for at in times])


def test_a_gap_counts_only_while_a_majority_is_well() -> None:
    well = [(0.0, True), (20.0, True)]
    passes(check_availability(writes(3, 7, 11, 15, 18), well))
    fails(check_availability(writes(3, 9, 13, 17), well), "no write for 6.0 s")
    fails(check_availability(writes(9, 13, 17), well), "from 0.00 on")
    broken = [(0.0, True), (3.5, False), (9.0, True), (20.0, True)]
    passes(check_availability(writes(3, 9.5, 13, 17), broken))


@pytest.mark.parametrize(
    ("log", "files", "memory", "word"),
    [
        ("fine\nTraceback (most recent call last):\n  ...", 9, 9, "traceback"),
        ("\x1b[31mred\x1b[0m", 9, 9, "control characters"),
        ("fine", 10_000, 9, "open files"),
        ("fine", 9, 2 << 30, "MiB"),
    ],
)
def test_what_a_peer_should_not_leave_is_found(
    log: str, files: int, memory: int, word: str
) -> None:
    passes(check_hygiene({"n1": "fine\n"}, {"n1": 9}, {"n1": 9}))
    fails(check_hygiene({"n1": log}, {"n1": files}, {"n1": memory}), word)


def test_a_history_is_the_same_after_saving(tmp_path: Path) -> None:
    story = Story()
    story.history.save(tmp_path / "history.jsonl")
    assert History.load(tmp_path / "history.jsonl").calls == story.history.calls
