"""Leaving metrics out under pressure, where the school allows it (`metrics.sampling`).

Only of the lowest classes: types that say how busy a student is, and at most what share of it was
something else (corrections among keys).
Everything else is always kept, above all errors, hesitations, requests for help and what was
correct. Of each type of a batch one metric in `metrics.sampling` is kept, and a gap mark in the
same batch says how many are not: (kept + omitted) / kept is the weight of a kept one.

Which ones are kept follows from the batch's identity and type, so a retry under pressure leaves the
same ones out. One without pressure does not: whichever attempt is stored first counts, and its
result says what is in it.
"""

from __future__ import annotations

import zlib
from typing import Final

from gaia.command.v1 import command_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.state.packing import decode_column, encode_column

SETTING: Final = "metrics.sampling"
LOWEST_CLASSES: Final = frozenset({"keypress", "keystroke", "mouse_move", "pointer_move", "scroll"})
"""Types of which metrics may be left out; a type that is not listed never is."""


def sample(batch: command_pb2.PackedBatch, one_in: int) -> int:
    """Keeps one metric in `one_in` of each of the lowest classes; returns how many went."""
    if one_in <= 1:
        return 0
    omitted = 0
    emptied: list[int] = []
    for place, column in enumerate(batch.columns):
        if column.metric_type not in LOWEST_CLASSES:
            continue
        offsets_ms = decode_column(column.time_offsets_ms)
        first = _first_kept(batch, column.metric_type, one_in)
        gone = [offset for at, offset in enumerate(offsets_ms) if at % one_in != first]
        if not gone:
            continue
        omitted += len(gone)
        batch.omissions.add(
            metric_type=column.metric_type,
            count=len(gone),
            time_offset_ms=max(gone),
            reason=metrics_pb2.OMISSION_REASON_SAMPLED,
        )
        if len(gone) == len(offsets_ms):
            emptied.append(place)
            continue
        values = decode_column(column.values_micro)
        column.time_offsets_ms = encode_column(offsets_ms[first::one_in])
        column.values_micro = encode_column(values[first::one_in])
    for place in reversed(emptied):
        del batch.columns[place]
    return omitted


def _first_kept(batch: command_pb2.PackedBatch, metric_type: str, one_in: int) -> int:
    """Place of the first metric that is kept: another one in each batch, so that short batches
    lose their share and no more."""
    identity = f"{batch.source_id}\n{batch.source_epoch}\n{batch.sequence}\n{metric_type}"
    return zlib.crc32(identity.encode()) % one_in
