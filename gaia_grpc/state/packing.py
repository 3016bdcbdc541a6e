"""A batch of metrics as ingress packs it for the log: checked once, in columns, in whole numbers.

Pure, and used by ingress and by tests alike. What the log holds is `PackedBatch`: only valid
metrics, grouped by type and sorted by type, event times relative to `sent_at_ms` (so that a live
batch can be placed by its age at apply), values in millionths (so that sums are integers and the
order of arrival cannot matter).

The content digest is what tells a retry from other content under the same (source_id,
source_epoch, sequence). It covers what the sender wrote, the invalid metrics included, and neither
the identity nor `sent_at_ms`, which every attempt stamps anew: event times go in as they were
written, absolute, with 0 for "at sent_at_ms".
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from gaia.command.v1 import command_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.errors import FieldViolation, InvalidArgumentError

MICRO: Final = 1_000_000
"""Micro-units in one unit."""
MAX_VALUE: Final = 9e9
"""Largest magnitude of a value: 9e15 micro-units are still exact in a double."""
MAX_TIME_MS: Final = 253_402_300_799_999
"""The end of the year 9999: the latest time that a sender may write."""
MAX_OMITTED: Final = 1_000_000_000
"""Most measurements that one gap mark stands for."""
DIGEST_BYTES: Final = 16
LITTLE_ENDIAN = sys.byteorder == "little"
_OLDEST_OFFSET_MS: Final = -MAX_TIME_MS
_TYPE = re.compile(r"[A-Za-z0-9._:-]{1,128}")

VALUE_NOT_FINITE: Final = "VALUE_NOT_FINITE"
VALUE_OUT_OF_RANGE: Final = "VALUE_OUT_OF_RANGE"
TYPE_INVALID: Final = "TYPE_INVALID"
TIME_IN_FUTURE: Final = "TIME_IN_FUTURE"


@dataclass(frozen=True, slots=True)
class Packing:
    """What became of one batch: `batch` may hold no column where every metric was rejected."""

    batch: command_pb2.PackedBatch
    rejected: tuple[metrics_pb2.RejectedMetric, ...]


def pack_batch(
    batch: metrics_pb2.MetricBatch, *, max_future_ms: int, with_omissions: bool = True
) -> Packing:
    """Checks and packs one batch; ids and sizes are the validation's part, not checked here.

    A metric more than `max_future_ms` ahead of `sent_at_ms` is rejected; without `sent_at_ms` a
    live metric is taken as now, and a timeline's batch as sent at its newest event. Without
    `with_omissions` gap marks are passed over, as by the versions before feature level 3. Raises
    `InvalidArgumentError` for a `sent_at_ms` that is no time.
    """
    omissions = batch.omissions if with_omissions else ()
    times = [metric.event_time_ms for metric in batch.metrics]
    values = [metric.value for metric in batch.metrics]
    types = [metric.metric_type for metric in batch.metrics]
    sent_at_ms = _sent_at(batch, [*times, *(mark.event_time_ms for mark in omissions)])
    packed = command_pb2.PackedBatch(
        source_id=batch.source_id,
        source_epoch=batch.source_epoch,
        sequence=batch.sequence,
        content_digest=_digest(content_digest(batch, types, times, values), omissions),
        sent_at_ms=sent_at_ms,
        timeline_id=batch.timeline_id,
        classroom_id=batch.classroom_id,
        student_id=batch.student_id,
        app_name=batch.app_name,
    )
    columns: dict[str, tuple[list[int], list[int]] | None] = {}
    rejected: list[metrics_pb2.RejectedMetric] = []
    for index, (metric_type, time_ms, value) in enumerate(zip(types, times, values, strict=True)):
        if metric_type not in columns:
            columns[metric_type] = ([], []) if _TYPE.fullmatch(metric_type) else None
        column = columns[metric_type]
        offset_ms = time_ms - sent_at_ms if time_ms and sent_at_ms else 0
        if column is None:
            reason = TYPE_INVALID
        elif not -MAX_VALUE <= value <= MAX_VALUE:
            infinite = value in (float("inf"), float("-inf"))
            reason = VALUE_NOT_FINITE if value != value or infinite else VALUE_OUT_OF_RANGE
        elif offset_ms > max_future_ms:
            reason = TIME_IN_FUTURE
        else:
            column[0].append(max(offset_ms, _OLDEST_OFFSET_MS))
            column[1].append(round(value * MICRO))
            continue
        rejected.append(metrics_pb2.RejectedMetric(index=index, reason=reason))
    for metric_type in sorted(columns):
        column = columns[metric_type]
        if column is not None and column[0]:
            packed.columns.add(
                metric_type=metric_type,
                time_offsets_ms=encode_column(column[0]),
                values_micro=encode_column(column[1]),
            )
    _pack_omissions(packed, omissions, max_future_ms)
    return Packing(packed, tuple(rejected))


def _pack_omissions(
    packed: command_pb2.PackedBatch, omissions: Sequence[metrics_pb2.Omission], max_future_ms: int
) -> None:
    sent_at_ms = packed.sent_at_ms
    for mark in omissions:
        time_ms = mark.event_time_ms
        offset_ms = time_ms - sent_at_ms if time_ms and sent_at_ms else 0
        packed.omissions.add(
            metric_type=mark.metric_type,
            count=mark.count,
            time_offset_ms=min(max(offset_ms, _OLDEST_OFFSET_MS), max_future_ms),
            reason=mark.reason,
        )


def _sent_at(batch: metrics_pb2.MetricBatch, times: Sequence[int]) -> int:
    sent_at_ms = batch.sent_at_ms
    if not 0 <= sent_at_ms <= MAX_TIME_MS:
        description = f"must be 0 to {MAX_TIME_MS} ms, is {sent_at_ms}"
        raise InvalidArgumentError(
            f"sent_at_ms {description}", [FieldViolation("sent_at_ms", description)]
        )
    if sent_at_ms == 0 and batch.timeline_id:
        # A timeline has no other clock: its newest valid event is the best there is.
        return max((time_ms for time_ms in times if 0 < time_ms <= MAX_TIME_MS), default=0)
    return sent_at_ms


def content_digest(
    batch: metrics_pb2.MetricBatch,
    types: Sequence[str],
    times: Sequence[int],
    values: Sequence[float],
) -> bytes:
    """First 16 bytes of SHA-256 over an encoding of our own.

    Protobuf promises no stable bytes between versions, and peers of two versions may see the two
    attempts. Lengths stand before all strings, so that no two contents share one encoding.
    """
    texts = [batch.timeline_id, batch.classroom_id, batch.student_id, batch.app_name, *types]
    encoded = [text.encode() for text in texts]
    digest = sha256(b"gaia.metrics.1")
    digest.update(encode_column([len(text) for text in encoded]))
    digest.update(b"".join(encoded))
    digest.update(encode_column(times))
    doubles = array("d", values)
    if not LITTLE_ENDIAN:
        doubles.byteswap()
    digest.update(doubles.tobytes())
    return digest.digest()[:DIGEST_BYTES]


def _digest(content: bytes, omissions: Sequence[metrics_pb2.Omission]) -> bytes:
    """The digest of metrics and gap marks; without marks that of the metrics alone, as ever."""
    if not omissions:
        return content
    types = [mark.metric_type.encode() for mark in omissions]
    digest = sha256(b"gaia.omissions.1")
    digest.update(content)
    digest.update(encode_column([len(name) for name in types]))
    digest.update(b"".join(types))
    for mark in omissions:
        digest.update(encode_column([mark.count, mark.event_time_ms, mark.reason]))
    return digest.digest()[:DIGEST_BYTES]


def encode_column(numbers: Sequence[int]) -> bytes:
    """Little-endian signed 64-bit integers."""
    column = array("q", numbers)
    if not LITTLE_ENDIAN:
        column.byteswap()
    return column.tobytes()


def decode_column(column: bytes) -> array[int]:
    """The inverse of `encode_column`; raises `ValueError` where it is no multiple of 8 bytes."""
    numbers = array("q")
    numbers.frombytes(column)
    if not LITTLE_ENDIAN:
        numbers.byteswap()
    return numbers
