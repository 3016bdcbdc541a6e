"""Windows in a snapshot: exact, in columns, in pieces of less than 0.1 ms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gaia.command.v1 import metrics_record_pb2

from gaia_grpc.state import columns
from gaia_grpc.state.level import Level
from gaia_grpc.state.series import Series
from gaia_grpc.state.windows import StudentWindow

PIECE_METRICS: Final = 8_192
SERIES_COST: Final = 256
"""A series costs as much as this many metrics, however few it holds."""


def encode_window(window: StudentWindow) -> Iterator[bytes]:
    """A window as `WindowRecord` messages: one, or more where it is large."""
    student_id, app_name = window.key
    stored = metrics_record_pb2.WindowRecord(
        timeline_id=window.timeline_id,
        student_id=student_id,
        app_name=app_name,
        classroom_id=window.classroom_id,
        accepted_total=window.accepted_total,
        late_total=window.late_total,
        version=window.version,
        touched_ms=window.touched_ms,
        swept_ms=window.swept_ms,
        packed_through_ms=window.packed_through_ms,
        level=window.level.pack() if window.level is not None else None,
    )
    if window.omissions.total:
        stored.omissions.extend(window.omissions.encode())
        stored.omitted_total = window.omissions.total
    room = PIECE_METRICS
    for metric_type in sorted(window.series):
        series = window.series[metric_type]
        first, count = 0, len(series.times)
        while first < count:
            if room <= 0:
                yield stored.SerializeToString(deterministic=True)
                stored = metrics_record_pb2.WindowRecord(further_piece=True)
                room = PIECE_METRICS
            last = min(first + room, count)
            stored.series.add(
                metric_type=metric_type,
                count=last - first,
                times_ms=columns.pack(series.times[first:last]),
                values_micro=columns.pack(series.values[first:last]),
            )
            room -= last - first + SERIES_COST
            first = last
    yield stored.SerializeToString(deterministic=True)


def decode_window(stored: metrics_record_pb2.WindowRecord) -> StudentWindow:
    """The window of a first piece; further ones go to `take_in`. Raises `ValueError`."""
    window = StudentWindow(stored.timeline_id, (stored.student_id, stored.app_name))
    window.classroom_id = stored.classroom_id
    window.accepted_total = stored.accepted_total
    window.late_total = stored.late_total
    window.version = stored.version
    window.touched_ms = stored.touched_ms
    window.swept_ms = stored.swept_ms
    if stored.HasField("packed_through_ms"):
        window.packed_through_ms = stored.packed_through_ms
    if stored.level:
        window.level = Level.unpack(stored.level)
    window.omissions.total = stored.omitted_total
    for gaps in stored.omissions:
        window.omissions.load(gaps)
    take_in(window, stored)
    return window


def take_in(window: StudentWindow, stored: metrics_record_pb2.WindowRecord) -> None:
    """Adds the series of one piece. Raises `ValueError` where they can't be."""
    for piece in stored.series:
        if not 1 <= piece.count <= PIECE_METRICS:
            raise ValueError(f"a series of {piece.count} metrics")
        series = window.series.get(piece.metric_type)
        if series is None:
            if window.series and piece.metric_type < max(window.series):
                raise ValueError("series out of order")
            series = window.series[piece.metric_type] = Series()
        times = columns.unpack(piece.times_ms, piece.count)
        if series.times and times[0] < series.times[-1]:
            raise ValueError("pieces of a series out of order")
        series.times.extend(times)
        series.values.extend(columns.unpack(piece.values_micro, piece.count))
