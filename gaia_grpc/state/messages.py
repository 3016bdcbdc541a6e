"""Small conversions between records and messages."""

from __future__ import annotations

from functools import lru_cache

from google.protobuf.timestamp_pb2 import Timestamp


@lru_cache(maxsize=64)
def timestamp(time_ms: int) -> Timestamp:
    """A log time as a Timestamp, which is shared: messages copy it, nobody may change it.

    All that one command touches has its time, so most of a batch's thousands are the same one.
    """
    seconds, milliseconds = divmod(time_ms, 1_000)
    return Timestamp(seconds=seconds, nanos=milliseconds * 1_000_000)
