"""Measures snapshots of the queue by hand: `python -m tests.state.measure_snapshot`. No test."""

from __future__ import annotations

import gc
import sys
import time

from gaia_grpc.state.restore import SnapshotDecoder
from gaia_grpc.state.snapshot_codec import SnapshotEncoder
from tests.state.measure_queue import ROUND, encoded, filled, timed

RECORDS_A_SLICE = 50
PIECE_BYTES = 256 << 10
REQUESTS = 100_000


def spent_ms(start_s: float) -> float:
    """Milliseconds of CPU since then."""
    return (time.process_time() - start_s) * 1_000


def drained(encoder: SnapshotEncoder) -> tuple[bytes, float, float]:
    """The bytes, all milliseconds, and those of the longest slice."""
    pieces, worst_ms = [], 0.0
    start_s = time.process_time()
    while True:
        slice_s = time.process_time()
        piece = encoder.take(RECORDS_A_SLICE)
        worst_ms = max(worst_ms, spent_ms(slice_s))
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces), spent_ms(start_s), worst_ms


def measure(pending: int) -> str:
    """Encode and decode of a queue with kept outcomes."""
    log = filled(pending)
    spec = {"task_type": "grade", "affinity": "math", "payload": b"x" * 50}
    for start in range(0, min(REQUESTS, pending), ROUND):
        entries = [
            encoded(
                log,
                client_id="c",
                request_id=f"request-{number}",
                request_digest=b"d" * 32,
                enqueue_tasks={"tasks": [spec]},
            )
            for number in range(start, start + ROUND)
        ]
        timed(log, entries)
    gc.collect()
    gc.freeze()  # as a peer does after load
    start_s = time.process_time()
    encoder = log.machine.begin_snapshot()
    freeze_ms = spent_ms(start_s)
    data, encode_ms, worst_ms = drained(encoder)
    start_s = time.process_time()
    decoder = SnapshotDecoder()
    worst_feed_ms = 0.0
    for place in range(0, len(data), PIECE_BYTES):
        feed_s = time.process_time()
        decoder.feed(data[place : place + PIECE_BYTES])
        worst_feed_ms = max(worst_feed_ms, spent_ms(feed_s))
    feed_ms = spent_ms(start_s)
    start_s = time.process_time()
    machine = decoder.finish()
    finish_ms = spent_ms(start_s)
    again, _, _ = drained(machine.begin_snapshot())
    gc.unfreeze()
    tasks = log.stats().pending
    return (
        f"{tasks} tasks, {min(REQUESTS, pending)} outcomes: freeze {freeze_ms:.1f} ms, "
        f"encode {encode_ms:.0f} ms (worst slice of {RECORDS_A_SLICE} {worst_ms:.2f} ms), "
        f"{len(data) / tasks:.0f} bytes a task with its outcome, decode {feed_ms:.0f} ms "
        f"(worst {PIECE_BYTES >> 10} KiB {worst_feed_ms:.1f} ms) and finish {finish_ms:.1f} ms, "
        f"the same again: {again == data}"
    )


def apply_us(*, under_way: bool) -> float:
    """Microseconds an enqueue among 100,000 tasks, best of some rounds."""
    log = filled(100_000)
    spec = {"task_type": "grade", "affinity": "math", "payload": b"x" * 50}
    if under_way:
        log.machine.begin_snapshot().take(10)
    gc.collect()
    gc.freeze()
    best_us = min(
        timed(log, [encoded(log, enqueue_tasks={"tasks": [spec]}) for _ in range(ROUND)])[0]
        for _ in range(8)
    )
    gc.unfreeze()
    return best_us


if __name__ == "__main__":
    for size in (1_000, 100_000):
        sys.stdout.write(measure(size) + "\n")
    sys.stdout.write(
        f"enqueue: {apply_us(under_way=False):.1f} us, "
        f"with a snapshot under way {apply_us(under_way=True):.1f} us\n"
    )
