"""What is no snapshot is refused, whatever is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from gaia.command.v1 import snapshot_pb2
from gaia.task.v1 import task_pb2
from google.protobuf.message import Message

from gaia_grpc.errors import InvariantError, StorageDamagedError
from gaia_grpc.raft.types import EntryKind
from gaia_grpc.state.feature_levels import FEATURE_LEVEL
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.restore import SnapshotDecoder
from gaia_grpc.state.snapshot_codec import FORMAT, MAX_RECORD_BYTES, frame, tag_of, varint
from tests.state.harness import Log
from tests.state.snapshot_checks import busy_log, restored, whole


def small() -> bytes:
    """A snapshot with a record of most sections."""
    log = Log()
    worker = log.register("w1", "math")
    log.enqueue(idempotency_key="k")
    log.complete(log.claim(worker)[0], result=b"done")
    log.wait(worker)
    log.apply_fields(
        enqueue_tasks={"tasks": [{"task_type": "grade", "affinity": "art"}]}, request_id="r1"
    )
    return whole(log.machine)


def header(**fields: object) -> snapshot_pb2.SnapshotHeader:
    base = snapshot_pb2.SnapshotHeader(
        format=FORMAT, index=7, state_hash=bytes(32), elapsed_ms=9, cluster_id="c", feature_level=1
    )
    base.MergeFrom(snapshot_pb2.SnapshotHeader(**fields))  # type: ignore[arg-type]  # any field
    return base


def forged(records: Sequence[tuple[str, Message]], *, count: int | None = None) -> bytes:
    """Records with a trailer that fits them."""
    body = b"".join(
        frame(varint(tag_of(name)), message.SerializeToString()) for name, message in records
    )
    trailer = snapshot_pb2.SnapshotTrailer(
        record_count=len(records) if count is None else count,
        digest=hashlib.sha256(body).digest(),
    )
    return body + frame(varint(tag_of("trailer")), trailer.SerializeToString())


def test_a_forged_snapshot_of_nothing_but_a_header_is_one() -> None:
    # What the others are variations of.
    machine = restored(forged([("header", header())]))
    assert (machine.applied_index, machine.elapsed_ms, machine.cluster_id) == (7, 9, "c")


def test_bytes_may_come_in_any_pieces() -> None:
    data = small()
    for cut in (1, 2, 3, 64, len(data)):
        assert whole(restored(data, cut)) == data


def test_each_cut_is_noticed() -> None:
    data = small()
    for length in range(len(data)):
        decoder = SnapshotDecoder()
        decoder.feed(data[:length])
        with pytest.raises(StorageDamagedError):
            decoder.finish()


def test_each_flipped_bit_is_noticed() -> None:
    data = small()
    for place in range(len(data)):
        bad = bytearray(data)
        bad[place] ^= 1 << place % 8
        with pytest.raises(StorageDamagedError):
            restored(bytes(bad))


def test_left_out_and_repeated_records_are_noticed() -> None:
    machine = busy_log(1, 60).machine
    pieces = []
    encoder = machine.begin_snapshot()
    while piece := encoder.take(1):
        pieces.append(piece)
    for place in range(len(pieces)):
        for bad in (
            pieces[:place] + pieces[place + 1 :],
            [*pieces[: place + 1], *pieces[place:]],
        ):
            with pytest.raises(StorageDamagedError):
                restored(b"".join(bad))


PENDING, CLAIMED_STATE = task_pb2.TASK_STATE_PENDING, task_pb2.TASK_STATE_CLAIMED
TASK = snapshot_pb2.TaskRecord(number=1, task_type="t", affinity="general", state=PENDING)
CLAIMED = snapshot_pb2.TaskRecord(number=1, state=CLAIMED_STATE, session_id="s-000000000001")
SESSION = snapshot_pb2.SessionRecord(number=1, name="w1")
REQUEST = snapshot_pb2.RequestRecord(request_id="r", index=1)
COUNTERS = snapshot_pb2.TaskCounters(last_number=1)
UNEVEN = snapshot_pb2.FinishedTasks(expire_ms=[1, 2], numbers=[1], finish_ms=[1])
STATELESS = snapshot_pb2.TaskRecord(number=1)

NONSENSE: dict[str, list[tuple[str, Message]]] = {
    "no header": [("session", SESSION)],
    "a trailer first": [],
    "two headers": [("header", header()), ("header", header())],
    "another format": [("header", header(format=FORMAT + 1))],
    "no level": [("header", snapshot_pb2.SnapshotHeader(format=FORMAT, state_hash=bytes(32)))],
    "a level to come": [("header", header(feature_level=FEATURE_LEVEL + 1))],
    "a short hash": [("header", snapshot_pb2.SnapshotHeader(format=FORMAT, feature_level=1))],
    "an unknown setting": [
        ("header", header(settings=[{"name": "no.such", "value": "1"}])),
    ],
    "sections in another order": [("header", header()), ("task", TASK), ("session", SESSION)],
    "a task that was never added": [("header", header()), ("task", TASK)],
    "a task of no state": [("header", header()), ("task_counters", COUNTERS), ("task", STATELESS)],
    "a task twice": [
        ("header", header()), ("task_counters", COUNTERS), ("task", TASK), ("task", TASK),
    ],
    "a claim of nobody": [("header", header()), ("task_counters", COUNTERS), ("task", CLAIMED)],
    "a session twice": [("header", header()), ("session", SESSION), ("session", SESSION)],
    "a request twice": [("header", header()), ("request", REQUEST), ("request", REQUEST)],
    "a wait of nobody": [
        ("header", header()), ("wait", snapshot_pb2.WaitRecord(waiter_id=1, session_number=4)),
    ],
    "uneven columns": [("header", header()), ("finished_tasks", UNEVEN)],
}  # fmt: skip


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_refused(name: str) -> None:
    with pytest.raises(StorageDamagedError):
        restored(forged(NONSENSE[name]))


def test_unknown_sections_and_broken_frames_are_refused() -> None:
    good = frame(varint(tag_of("header")), header().SerializeToString())
    for bad in (
        frame(varint(4_000 << 3 | 2), b""),
        frame(varint(tag_of("task") - 2), b""),  # a number where a message should be
        frame(varint(tag_of("task")), b"\xff\xff"),
        varint(MAX_RECORD_BYTES + 1),
        b"\xff\xff\xff\xff",
        b"\x01\x80",
        b"\x00",
        b"\x03\x0a\x05a",
    ):
        with pytest.raises(StorageDamagedError):
            restored(good + bad + bytes(64))


def test_the_count_is_checked() -> None:
    with pytest.raises(StorageDamagedError, match="records"):
        restored(forged([("header", header())], count=2))


def test_nothing_comes_behind_the_trailer() -> None:
    data = small()
    for more in (b"\x00", b"\x05", data):
        with pytest.raises(StorageDamagedError):
            restored(data + more)


def test_only_an_empty_machine_takes_a_header() -> None:
    machine = StateMachine()
    machine.apply(1, EntryKind.NOOP, b"")
    with pytest.raises(InvariantError):
        machine.restore_header(header())
