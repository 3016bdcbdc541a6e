"""Channels of the detector: which metric types are evidence, and of what. The one vocabulary.

A type that stands in none of them is stored, summed up and no evidence. What a metric adds to its
channel is a whole number, so that a sum is the same in any order of arrival.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from gaia_grpc.state.packing import MICRO

ERROR_TYPES: Final = ("error", "errors", "mistake")
SUCCESS_TYPES: Final = ("completion", "correct")
ACCURACY_TYPE: Final = "accuracy"
CORRECTION_TYPES: Final = ("backspace", "correction")
HINT_TYPES: Final = ("help", "hint")
IDLE_TYPES: Final = ("hesitation", "idle", "pause")

ERROR: Final = "error"
CORRECT: Final = "correct"
RESPONSE_TIME: Final = "response_time"

CHANNELS: Final = (
    ERROR, CORRECT, RESPONSE_TIME, "backspace", "keypress", "hint", "idle", "attempts", "blur",
    "rapid_repeat",
)  # fmt: skip
"""Their places are part of what is stored: a new one comes last."""

_TYPES_OF: Final = (
    (ERROR, (*ERROR_TYPES, ACCURACY_TYPE)),
    (CORRECT, (*SUCCESS_TYPES, ACCURACY_TYPE)),
    (RESPONSE_TIME, ("response_time",)),
    ("backspace", CORRECTION_TYPES),
    ("keypress", ("keypress",)),
    ("hint", HINT_TYPES),
    ("idle", IDLE_TYPES),
    ("attempts", ("attempts",)),
    ("blur", ("blur",)),
    ("rapid_repeat", ("rapid_repeat",)),
)


def _places() -> Mapping[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for channel, types in _TYPES_OF:
        for metric_type in types:
            found[metric_type] = (*found.get(metric_type, ()), CHANNELS.index(channel))
    return MappingProxyType(found)


PLACES_OF: Final = _places()
"""Metric type -> the places of its channels in `CHANNELS`."""

LOG_STEPS: Final = 64
"""Steps of a logarithm in one doubling."""
_LOG_BITS: Final = 8


def _log_table() -> bytes:
    """Steps of log2((256 + place) / 256), rounded down, for each place."""
    table = bytearray()
    for place in range(1 << _LOG_BITS):
        power = (place + (1 << _LOG_BITS)) ** LOG_STEPS
        table.append(power.bit_length() - 1 - _LOG_BITS * LOG_STEPS)
    return bytes(table)


_LOGS: Final = _log_table()


def log2_steps(value: int) -> int:
    """64 * log2(value) for a positive whole number, to 1/64 of a doubling below, in integers."""
    bits = value.bit_length() - 1
    shift = bits - _LOG_BITS
    mantissa = value >> shift if shift >= 0 else value << -shift
    return bits * LOG_STEPS + _LOGS[mantissa - (1 << _LOG_BITS)]


def accuracy_micro(value: int) -> int:
    """The share that was right, in millionths; an accuracy is written as 0..1 or as 0..100."""
    right = value if value <= MICRO else value // 100
    return min(max(right, 0), MICRO)


def evidence(metric_type: str, place: int, values: array[int]) -> list[int] | array[int]:
    """What each metric adds to the channel at `place`; 0 where it is no evidence."""
    if metric_type == ACCURACY_TYPE:
        if CHANNELS[place] == CORRECT:
            return [accuracy_micro(value) for value in values]
        return [MICRO - accuracy_micro(value) for value in values]
    if metric_type == "completion":
        return [MICRO if value > 0 else 0 for value in values]
    if CHANNELS[place] == RESPONSE_TIME:
        return [log2_steps(value) if value > 0 else 0 for value in values]
    if values and min(values) > 0:
        return values
    return [max(value, 0) for value in values]
