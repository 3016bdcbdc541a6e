"""One past window, packed: exact figures of each type in a few bytes, and what the detector saw.

    length of the window, revision
    for each type of the record, in order:
        count, omitted
        where count is not 0: first time - start, last - first, power of ten, min, max - min,
            count - ranked; and where max > min: sum(x - min), sum((x - min)^2), and where anything
            is ranked: p50 - min, p95 - p50, p99 - p95
    detector inputs (detector_inputs.py)

All are numbers of variable length (varints.py), values in units of the power of ten that divides
them all, so that whole counts are as short as they look. The types stand beside the bytes: windows
of one student in one app have mostly the same, and share them.

Sums and squares are kept as such, so that what comes late is added exactly. Percentiles can't be
added to: `ranked` says how many measurements they are over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd
from operator import mul
from typing import Final

from gaia_grpc.state import detector_inputs, varints
from gaia_grpc.state.detector_inputs import Inputs
from gaia_grpc.state.series import Series
from gaia_grpc.state.windows import nearest_rank

MAX_POWER: Final = 6
"""Of ten: a millionth times this is a unit."""


@dataclass(slots=True)
class Figures:
    """One type in one window; values and their sums in micro-units, times in milliseconds."""

    count: int = 0
    total: int = 0
    squares: int = 0
    minimum: int = 0
    maximum: int = 0
    first_ms: int = 0
    last_ms: int = 0
    ranked: int = 0
    """Measurements that the percentiles are over."""
    p50: int = 0
    p95: int = 0
    p99: int = 0
    omitted: int = 0

    def add(self, other: Figures) -> None:
        """Takes in more measurements; percentiles are those over more of them."""
        self.omitted += other.omitted
        if not other.count:
            return
        if self.count:
            self.minimum = min(self.minimum, other.minimum)
            self.maximum = max(self.maximum, other.maximum)
            self.first_ms = min(self.first_ms, other.first_ms)
            self.last_ms = max(self.last_ms, other.last_ms)
        else:
            self.minimum, self.maximum = other.minimum, other.maximum
            self.first_ms, self.last_ms = other.first_ms, other.last_ms
        self.count += other.count
        self.total += other.total
        self.squares += other.squares
        if other.ranked > self.ranked:
            self.ranked = other.ranked
            self.p50, self.p95, self.p99 = other.p50, other.p95, other.p99


def figures_of(series: Series, first: int, last: int, *, ranked: bool) -> Figures:
    """The figures of the metrics at these positions, which are one at least."""
    ascending: Sequence[int] = series.values[first:last]
    if ranked:
        ascending = sorted(ascending)
    figures = Figures(
        count=last - first,
        total=sum(ascending),
        squares=sum(map(mul, ascending, ascending)),
        minimum=ascending[0] if ranked else min(ascending),
        maximum=ascending[-1] if ranked else max(ascending),
        first_ms=series.times[first],
        last_ms=series.times[last - 1],
    )
    if ranked:
        figures.ranked = figures.count
        figures.p50 = nearest_rank(ascending, 50)
        figures.p95 = nearest_rank(ascending, 95)
        figures.p99 = nearest_rank(ascending, 99)
    return figures


@dataclass(slots=True)
class PastWindow:
    """One tumbling window, `start_ms < t <= end_ms`."""

    start_ms: int
    end_ms: int
    revision: int = 0
    figures: dict[str, Figures] = field(default_factory=dict)
    """By type; sorted when it is read or packed."""
    inputs: Inputs = field(default_factory=dict)

    def add_series(
        self, metric_type: str, series: Series, first: int, last: int, *, ranked: bool
    ) -> None:
        """Adds metrics of one type by their positions; `ranked` where those are all there are."""
        self.of(metric_type).add(figures_of(series, first, last, ranked=ranked))
        detector_inputs.add_series(self.inputs, metric_type, series, first, last)

    def add(self, other: PastWindow) -> None:
        """Adds all that another one of the same end holds, but its revision.

        Where the windows' length has changed the other may begin earlier: what came from ahead of
        the clock was packed by the length of before.
        """
        self.start_ms = min(self.start_ms, other.start_ms)
        for metric_type, figures in other.figures.items():
            self.of(metric_type).add(figures)
        detector_inputs.merge(self.inputs, other.inputs)

    def of(self, metric_type: str) -> Figures:
        """The figures of a type, made where there are none."""
        found = self.figures.get(metric_type)
        if found is None:
            found = self.figures[metric_type] = Figures()
        return found

    def drop(self, metric_type: str) -> None:
        """Forgets a type and the channels that it is part of."""
        del self.figures[metric_type]
        detector_inputs.drop(self.inputs, metric_type)

    def types(self) -> tuple[str, ...]:
        """Its types, sorted."""
        return tuple(sorted(self.figures))


def encode(window: PastWindow) -> bytes:
    """The window without its end and its types."""
    encoded = bytearray()
    varints.append(encoded, window.end_ms - window.start_ms)
    varints.append(encoded, window.revision)
    for metric_type in sorted(window.figures):
        _encode_figures(encoded, window.figures[metric_type], window.start_ms)
    return bytes(encoded + detector_inputs.encode(window.inputs, window.start_ms))


def decode(packed: bytes, types: Sequence[str], end_ms: int) -> PastWindow:
    """The inverse. Raises `ValueError` for bytes that are none."""
    reader = varints.Reader(packed)
    start_ms = end_ms - reader.take()
    window = PastWindow(start_ms, end_ms, reader.take())
    for metric_type in types:
        window.figures[metric_type] = _decode_figures(reader, start_ms)
    window.inputs = detector_inputs.decode(reader, start_ms)
    return window


def _encode_figures(target: bytearray, figures: Figures, start_ms: int) -> None:
    varints.append(target, figures.count)
    varints.append(target, figures.omitted)
    if not figures.count:
        return
    varints.append(target, figures.first_ms - start_ms)
    varints.append(target, figures.last_ms - figures.first_ms)
    power = _power_of_ten(figures)
    unit = 10**power
    minimum = figures.minimum // unit
    target.append(power)
    varints.append_signed(target, minimum)
    varints.append(target, (figures.maximum - figures.minimum) // unit)
    varints.append(target, figures.count - figures.ranked)
    if figures.maximum == figures.minimum:
        return
    total = figures.total // unit
    squares = figures.squares // (unit * unit)
    varints.append(target, total - figures.count * minimum)
    varints.append(target, squares - minimum * (2 * total - figures.count * minimum))
    if figures.ranked:
        before = figures.minimum
        for percentile in (figures.p50, figures.p95, figures.p99):
            varints.append(target, (percentile - before) // unit)
            before = percentile


def _power_of_ten(figures: Figures) -> int:
    """The largest one that divides all values as far as can be told from their figures."""
    percentiles = (figures.p50, figures.p95, figures.p99)
    shared = gcd(figures.minimum, figures.maximum, figures.total, *percentiles)
    for power in range(MAX_POWER, 0, -1):
        unit = 10**power
        if not shared % unit and not figures.squares % (unit * unit):
            return power
    return 0


def _decode_figures(reader: varints.Reader, start_ms: int) -> Figures:
    figures = Figures(count=reader.take(), omitted=reader.take())
    count = figures.count
    if not count:
        return figures
    figures.first_ms = start_ms + reader.take()
    figures.last_ms = figures.first_ms + reader.take()
    power = reader.take()
    if power > MAX_POWER:
        raise ValueError("no power of ten")
    unit = 10**power
    minimum, spread = reader.take_signed(), reader.take()
    figures.minimum, figures.maximum = minimum * unit, (minimum + spread) * unit
    figures.ranked = count - reader.take()
    if figures.ranked < 0:
        raise ValueError("more measurements unranked than there are")
    total, squares = count * minimum, count * minimum * minimum
    percentiles = [minimum] * 3 if figures.ranked else [0] * 3
    if spread:
        total += reader.take()
        squares = reader.take() + minimum * (2 * total - count * minimum)
        if figures.ranked:
            percentile = minimum
            for at in range(3):
                percentile += reader.take()
                percentiles[at] = percentile
    figures.total, figures.squares = total * unit, squares * unit * unit
    figures.p50, figures.p95, figures.p99 = [percentile * unit for percentile in percentiles]
    return figures
