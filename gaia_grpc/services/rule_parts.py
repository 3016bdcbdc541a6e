"""Rules that the requests of several services share."""

from __future__ import annotations

from gaia.common.v1 import common_pb2

from gaia_grpc.services.validation import Rules, at_least, enum, optional_id, text, zero_or

MAX_NAME_CHARACTERS = 128
MAX_KEY_CHARACTERS = 256
MAX_NOTE_CHARACTERS = 4_096
MAX_TOKEN_CHARACTERS = 1_024
MAX_WAIT_MS = 60_000

CONSISTENCY = enum(common_pb2.Consistency.values())
INTERVAL = zero_or(100, 60_000)
NOTE = text(MAX_NOTE_CHARACTERS, lines=True)
TOKEN = text(MAX_TOKEN_CHARACTERS)
POSITIVE = at_least(1)
NOT_NEGATIVE = at_least(0)
WATCH: Rules = {
    "after_index": NOT_NEGATIVE,
    "cluster_id": optional_id,
    "interval_ms": INTERVAL,
}
