"""Past windows in a snapshot: the packed records as they are, in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gaia.command.v1 import metrics_record_pb2

from gaia_grpc.state.history_grid import AT_ALL_TIMES, MAX_CHANGES, Grid
from gaia_grpc.state.history_store import KeyHistory, TimelineHistory

PIECE_WINDOWS: Final = 64


def encode_timeline(past: TimelineHistory) -> bytes:
    """What the past windows of a timeline have in common."""
    stored = metrics_record_pb2.HistoryTimelineRecord(
        timeline_id=past.timeline_id,
        from_ms=past.grid.from_ms,
        window_ms=past.grid.window_ms,
        sweep_due_ms=past.sweep_due_ms,
    )
    if past.floor_ms != AT_ALL_TIMES:
        stored.floor_ms = past.floor_ms
    return stored.SerializeToString(deterministic=True)


def decode_timeline(data: bytes) -> TimelineHistory:
    """The inverse. Raises `ValueError`."""
    stored = metrics_record_pb2.HistoryTimelineRecord.FromString(data)
    lengths = len(stored.from_ms), len(stored.window_ms)
    if lengths[0] != lengths[1] or lengths[0] > MAX_CHANGES or min(stored.window_ms, default=1) < 1:
        raise ValueError("lengths of windows that are none")
    past = TimelineHistory(stored.timeline_id)
    past.grid = Grid(stored.from_ms, stored.window_ms)
    past.sweep_due_ms = stored.sweep_due_ms
    if stored.HasField("floor_ms"):
        past.floor_ms = stored.floor_ms
    return past


def encode_history(history: KeyHistory) -> Iterator[bytes]:
    """The windows of one student in one app as `HistoryRecord` messages."""
    student_id, app_name = history.key
    stored = metrics_record_pb2.HistoryRecord(
        timeline_id=history.timeline_id,
        student_id=student_id,
        app_name=app_name,
        classroom_id=history.classroom_id,
        visited_ms=history.visited_ms,
    )
    before: tuple[str, ...] = ()
    for at, types in enumerate(history.types):
        if at and not at % PIECE_WINDOWS:
            yield stored.SerializeToString(deterministic=True)
            stored = metrics_record_pb2.HistoryRecord(further_piece=True)
        stored.windows.add(
            end_ms=history.ends_ms[at],
            metric_types=types if types != before else (),
            packed=history.packed[at],
        )
        before = types
    yield stored.SerializeToString(deterministic=True)


def decode_history(data: bytes, loading: KeyHistory | None) -> KeyHistory:
    """The history of a first piece, or the one before with a further piece. Raises `ValueError`."""
    stored = metrics_record_pb2.HistoryRecord.FromString(data)
    if stored.further_piece:
        if loading is None:
            raise ValueError("a piece of no history")
        history = loading
    else:
        history = KeyHistory(stored.timeline_id, (stored.student_id, stored.app_name))
        history.classroom_id = stored.classroom_id
        history.visited_ms = stored.visited_ms
    for piece in stored.windows:
        if history.ends_ms and piece.end_ms <= history.ends_ms[-1]:
            raise ValueError("past windows out of order")
        types = tuple(piece.metric_types) or (history.types[-1] if history.types else ())
        if not types or list(types) != sorted(set(types)):
            raise ValueError("a past window without types, or with types out of order")
        history.ends_ms.append(piece.end_ms)
        history.types.append(types)
        history.packed.append(piece.packed)
        history.read(len(history.packed) - 1)
    return history
