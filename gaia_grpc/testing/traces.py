"""What students do, as samples for tests: normal work, and the troubles that are to be found.

Everything is drawn from a seeded `random.Random`, so a trace can be made again. A sample is
(metric_type, value, age in milliseconds); what to do with the age is the caller's affair
(`event_time_ms = now - age`). Traces are in no particular order of time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

Sample: TypeAlias = tuple[str, float, int]

SPAN_MS = 300_000
"""Length of the longer traces: a window of the metrics."""
HESITATIONS = ("hesitation", "pause", "idle")
"""All names of a pause; its value is in seconds."""


def _spaced(metric_type: str, count: int, gap_ms: int, *, begin_ms: int) -> list[Sample]:
    """So many of value 1, the first one at an age of `begin_ms`, each a gap later."""
    return [(metric_type, 1.0, begin_ms - at * gap_ms) for at in range(count)]


def normal(draw: random.Random) -> list[Sample]:
    """20 key presses, 2 corrections of 0 to 2 keys, one accuracy of 85 to 99, one answer in 800 to
    1,199 ms: nothing that needs anybody."""
    return [
        *_spaced("keypress", 20, 1_000, begin_ms=20_000),
        *(("backspace", float(draw.randint(0, 2)), draw.randint(1, 20_000)) for _ in range(2)),
        ("accuracy", float(draw.randint(85, 99)), 1),
        ("response_time", float(draw.randint(800, 1_199)), 1),
    ]


def answering(draw: random.Random, *, wrong: float = 0.1) -> list[Sample]:
    """Five minutes of a student who answers every 8 to 20 s, and is wrong with a probability."""
    samples = normal(draw)
    age_ms = SPAN_MS - draw.randint(1, 8_000)
    while age_ms > 0:
        right = draw.random() >= wrong
        samples.append(("correct" if right else "error", 1.0, age_ms))
        samples.append(("response_time", float(draw.randint(2_000, 9_000)), age_ms))
        age_ms -= draw.randint(8_000, 20_000)
    return samples


def typing(draw: random.Random, *, corrections_per_minute: float = 8.0) -> list[Sample]:
    """Five minutes of typing at two keys a second, with as many corrections as grown-ups make."""
    samples: list[Sample] = []
    for age_ms in range(SPAN_MS - 500, 0, -500):
        corrects = draw.random() < corrections_per_minute / 120
        samples.append(("backspace" if corrects else "keypress", 1.0, age_ms))
    return samples


def excessive_errors(draw: random.Random) -> list[Sample]:
    """6 errors, 10 s apart."""
    return _spaced("error", 6, 10_000, begin_ms=draw.randint(50_001, 240_000))


def repeated_errors(draw: random.Random) -> list[Sample]:
    """3 errors, 10 s apart."""
    return _spaced("error", 3, 10_000, begin_ms=draw.randint(20_001, 240_000))


def excessive_corrections(draw: random.Random) -> list[Sample]:
    """25 corrections, 2 s apart."""
    return _spaced("backspace", 25, 2_000, begin_ms=draw.randint(48_001, 240_000))


def repeated_corrections(draw: random.Random) -> list[Sample]:
    """12 corrections, 2 s apart."""
    return _spaced("backspace", 12, 2_000, begin_ms=draw.randint(22_001, 240_000))


def prolonged_hesitation(draw: random.Random) -> list[Sample]:
    """One pause of 35 s, under any of its names."""
    return [(draw.choice(HESITATIONS), 35.0, draw.randint(1, 240_000))]


def performance_degradation(draw: random.Random) -> list[Sample]:
    """Accuracy falls from 95 to 50 within 25 s."""
    begin_ms = draw.randint(26_000, 240_000)
    return [("accuracy", 95.0 - 9.0 * at, begin_ms - 5_000 * at) for at in range(6)]


def mixed_struggle(draw: random.Random) -> list[Sample]:
    """6 errors, and 25 corrections at the same time."""
    begin_ms = draw.randint(50_001, 240_000)
    return [
        *_spaced("error", 6, 10_000, begin_ms=begin_ms),
        *_spaced("backspace", 25, 2_000, begin_ms=begin_ms),
    ]


TROUBLES: Mapping[str, Callable[[random.Random], list[Sample]]] = MappingProxyType(
    {
        "excessive_errors": excessive_errors,
        "repeated_errors": repeated_errors,
        "excessive_corrections": excessive_corrections,
        "repeated_corrections": repeated_corrections,
        "prolonged_hesitation": prolonged_hesitation,
        "performance_degradation": performance_degradation,
        "mixed_struggle": mixed_struggle,
    }
)
"""Each is announced by the pattern of its name."""


def shuffled(draw: random.Random, *traces: Sequence[Sample]) -> list[Sample]:
    """Several traces of one student as one, in an order of arrival that says nothing."""
    samples = [sample for trace in traces for sample in trace]
    draw.shuffle(samples)
    return samples
