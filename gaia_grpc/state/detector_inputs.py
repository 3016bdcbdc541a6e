"""What the detector saw, in steps of 5 s: kept as long as past windows, for "what if" questions.

For each channel (channels.py) and each step: how many measurements were evidence, and the sum of
what they add. Steps are half open like windows: step k is 5,000 k < t <= 5,000 (k + 1). Late data
goes into the step that it belongs to.

Packed, a column is its first step, and for each step from there to the last a count in as many bits
as the largest needs, and a sum likewise, in units of their greatest common divisor; where every
measurement adds the same (keypresses of 1) there are no sums at all. So a channel of one evidence
every few seconds takes about 30 bytes in 5 minutes, and one that nothing came in takes none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from math import gcd
from typing import Final, TypeAlias

from gaia_grpc.state import varints
from gaia_grpc.state.channels import CHANNELS, PLACES_OF, evidence
from gaia_grpc.state.series import Series

STEP_MS: Final = 5_000
MAX_STEPS: Final = 1 << 20
"""More than a window of any length has: a larger count is damage."""

Column: TypeAlias = dict[int, tuple[int, int]]
"""Step -> (measurements, sum)."""
Inputs: TypeAlias = dict[int, Column]
"""Place of the channel in `CHANNELS` -> its column. Neither order means anything."""


def add_series(inputs: Inputs, metric_type: str, series: Series, first: int, last: int) -> None:
    """Adds metrics of one type, by their positions in a series."""
    places = PLACES_OF.get(metric_type)
    if places is None or first == last:
        return
    times, values = series.times, series.values[first:last]
    for place in places:
        column = inputs.setdefault(place, {})
        weights = evidence(metric_type, place, values)
        at = first
        while at < last:
            step = (times[at] - 1) // STEP_MS
            end = bisect_right(times, (step + 1) * STEP_MS, at, last)
            part = weights[at - first : end - first]
            at = end
            count = len(part) - part.count(0)
            if count:
                known = column.get(step, (0, 0))
                column[step] = (known[0] + count, known[1] + sum(part))
        if not column:
            del inputs[place]


def merge(inputs: Inputs, others: Inputs) -> None:
    """Adds what `others` hold."""
    for place, other in others.items():
        column = inputs.setdefault(place, {})
        for step, (count, total) in other.items():
            known = column.get(step, (0, 0))
            column[step] = (known[0] + count, known[1] + total)


def drop(inputs: Inputs, metric_type: str) -> None:
    """Forgets the channels of a type: what it added can't be told from the others."""
    for place in PLACES_OF.get(metric_type, ()):
        inputs.pop(place, None)


def encode(inputs: Inputs, start_ms: int) -> bytes:
    """The columns of a window that begins at `start_ms`, in the order of the channels."""
    encoded = bytearray()
    base = start_ms // STEP_MS
    for place in sorted(inputs):
        column = inputs[place]
        first, last = min(column), max(column)
        found = [column.get(step, (0, 0)) for step in range(first, last + 1)]
        counts = [count for count, _ in found]
        sums = [total for _, total in found]
        encoded.append(place)
        varints.append(encoded, first - base)
        varints.append(encoded, len(counts))
        _append_bits(encoded, counts)
        unit, rest = divmod(sum(sums), sum(counts))
        if not rest and all(total == count * unit for count, total in found):
            varints.append(encoded, unit)
            encoded.append(0)
        else:
            unit = gcd(*sums)
            varints.append(encoded, unit)
            _append_bits(encoded, [total // unit for total in sums])
    return bytes(encoded)


def decode(reader: varints.Reader, start_ms: int) -> Inputs:
    """The inverse, up to the end of the bytes. Raises `ValueError`."""
    inputs: Inputs = {}
    base = start_ms // STEP_MS
    while not reader.at_end:
        place = reader.take_bytes(1)[0]
        first = base + reader.take()
        size = reader.take()
        if place >= len(CHANNELS) or place in inputs or not 1 <= size <= MAX_STEPS:
            raise ValueError("no column of detector inputs")
        counts = _take_bits(reader, size)
        if not counts:
            raise ValueError("no column of detector inputs")
        unit = reader.take()
        scaled = _take_bits(reader, size)
        sums = [each * unit for each in (scaled or counts)]
        inputs[place] = {first + at: (count, sums[at]) for at, count in enumerate(counts) if count}
    return inputs


def _append_bits(target: bytearray, numbers: Sequence[int]) -> None:
    """One byte for the width, then the numbers in so many bits each."""
    width = max(numbers).bit_length()
    target.append(width)
    packed = 0
    for number in reversed(numbers):
        packed = packed << width | number
    target += packed.to_bytes((width * len(numbers) + 7) // 8, "little")


def _take_bits(reader: varints.Reader, size: int) -> list[int]:
    """The inverse; nothing where the width is 0."""
    width = reader.take_bytes(1)[0]
    if not width:
        return []
    packed = int.from_bytes(reader.take_bytes((width * size + 7) // 8), "little")
    mask = (1 << width) - 1
    return [packed >> (width * at) & mask for at in range(size)]


def steps(column: Column) -> Iterable[tuple[int, int, int]]:
    """(step, measurements, sum), ascending."""
    return ((step, *column[step]) for step in sorted(column))
