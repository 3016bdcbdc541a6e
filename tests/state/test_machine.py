"""The machine itself: order, log time, the chain hash, and what stops a peer."""

from __future__ import annotations

import hashlib

import pytest
from gaia.command.v1 import command_pb2, query_pb2

from gaia_grpc.errors import InvariantError
from gaia_grpc.raft.types import EntryKind
from gaia_grpc.state import topics
from gaia_grpc.state.chain import KEPT
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.sessions import SessionTable
from gaia_grpc.state.stamp import required_feature_level, stamp
from tests.state.harness import START_MS, Log, command


def test_the_chain_hash_covers_previous_index_kind_data_and_result() -> None:
    log = Log(found=False)
    log.apply_raw(EntryKind.NOOP, b"")
    data = stamp(command(advance_time={}).SerializeToString(), 5, 5)
    result = log.apply_raw(EntryKind.COMMAND, data)
    expected = bytes(32)
    for index, kind, body, outcome in ((1, 1, b"", b""), (2, 2, data, result)):
        expected = hashlib.sha256(
            expected
            + index.to_bytes(8, "big")
            + bytes([kind])
            + len(body).to_bytes(4, "big")
            + body
            + len(outcome).to_bytes(4, "big")
            + outcome
        ).digest()
    assert log.machine.state_hash() == (2, expected)


def test_other_kinds_advance_index_and_hash_only() -> None:
    log = Log()
    before = log.machine.state_hash()
    assert log.apply_raw(EntryKind.CONFIGURATION, b"members") == b""
    assert log.machine.applied_index == 2
    assert log.machine.state_hash() != before


def test_hashes_are_kept_for_the_last_4096_entries() -> None:
    log = Log(found=False)
    assert log.machine.state_hash() == (0, bytes(32))
    for _ in range(KEPT + 10):
        log.apply_raw(EntryKind.NOOP, b"")
    newest = KEPT + 10
    assert log.machine.state_hash() == log.machine.state_hash(newest)
    assert log.machine.state_hash(newest - KEPT + 1) is not None
    assert log.machine.state_hash(newest - KEPT) is None
    assert log.machine.state_hash(newest + 1) is None


def test_entries_must_come_in_order() -> None:
    machine = StateMachine()
    with pytest.raises(InvariantError):
        machine.apply(2, EntryKind.NOOP, b"")


def test_log_time_never_goes_back() -> None:
    log = Log()
    log.now_ms += 5_000
    log.do(advance_time={})
    log.now_ms -= 3_000
    log.do(advance_time={})
    assert log.machine.elapsed_ms == START_MS + 5_000


def test_the_leaders_stamp_wins_over_what_the_command_says() -> None:
    sent = command(elapsed_ms=1, wall_ms=2, request_id="r", advance_time={})
    merged = command_pb2.Command.FromString(stamp(sent.SerializeToString(), 70, 80))
    assert (merged.elapsed_ms, merged.wall_ms, merged.request_id) == (70, 80, "r")
    assert merged.WhichOneof("body") == "advance_time"
    assert required_feature_level(sent.SerializeToString()) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff",
        b"",
        command_pb2.Command(elapsed_ms=3).SerializeToString(),
        b"\xfa\x3f\x00",  # field 1023: a body of a later version
    ],
    ids=["garbage", "empty", "no body", "unknown body"],
)
def test_a_command_that_is_not_understood_stops_the_peer(data: bytes) -> None:
    log = Log()
    before = log.machine.state_hash()
    with pytest.raises(InvariantError):
        log.machine.apply(2, EntryKind.COMMAND, data)
    assert log.machine.state_hash() == before


def test_an_exception_in_apply_stops_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: SessionTable, key: object) -> None:
        raise KeyError(key)

    monkeypatch.setattr(SessionTable, "_health_due", broken)
    log = Log()
    log.register("worker")
    log.now_ms += 15_000
    with pytest.raises(InvariantError, match="advance_time"):
        log.do(advance_time={})


@pytest.mark.parametrize("name", ["put_classroom", "snooze_alert", "acquire_lock"])
def test_commands_of_later_releases_are_refused_and_not_remembered(name: str) -> None:
    log = Log(level=1)
    for _ in range(2):
        result = log.apply(command(request_id="r", **{name: {}}))
        assert result.refusal.kind == command_pb2.REFUSAL_KIND_UNIMPLEMENTED
        assert "not served yet" in result.refusal.message
        assert result.repeated_from_index == 0


def test_queries_that_can_not_be_answered_are_refused() -> None:
    log = Log()
    for data in (b"\xff\xff\xff", b""):
        result = query_pb2.QueryResult.FromString(log.machine.query(data, 0))
        assert result.refusal.kind == command_pb2.REFUSAL_KIND_INVALID_ARGUMENT
    missing = log.query(get_session={"session_id": "s-9"}).refusal
    assert missing.kind == command_pb2.REFUSAL_KIND_NOT_FOUND


def test_queries_change_neither_hash_nor_time() -> None:
    log = Log()
    log.enqueue()
    before = (log.machine.state_hash(), log.machine.elapsed_ms, log.machine.next_due_ms())
    log.now_ms += 10_000_000
    log.stats()
    log.ask(list_tasks={})
    assert (log.machine.state_hash(), log.machine.elapsed_ms, log.machine.next_due_ms()) == before


def test_touched_topics_come_once_in_order() -> None:
    log = Log()
    session = log.register("worker")
    log.enqueue()
    log.enqueue()
    log.claim(session)
    assert log.machine.take_touched() == [topics.SETTINGS, topics.SESSIONS, topics.TASKS]
    assert log.machine.take_touched() == []


def test_founding_happens_once() -> None:
    log = Log()
    assert log.machine.cluster_id == "c-test"
    again = log.refuse(found_cluster={"cluster_id": "c-other"})
    assert again.reason == "ALREADY_FOUNDED"
    assert log.machine.cluster_id == "c-test"
    empty = Log(found=False)
    assert empty.machine.cluster_id == ""
    assert empty.refuse(found_cluster={}).field == "cluster_id"
