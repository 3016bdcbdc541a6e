"""Small conversions between records and messages."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp


def timestamp(time_ms: int) -> Timestamp:
    """A log time as a Timestamp."""
    seconds, milliseconds = divmod(time_ms, 1_000)
    return Timestamp(seconds=seconds, nanos=milliseconds * 1_000_000)
