"""Durations as people write them, in the form that settings have: `200ms`, `1.5s`, `10m`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

from gaia_grpc.errors import ConfigError

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

UNITS_MS: Mapping[str, int] = {
    "d": 86_400_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1_000,
    "ms": 1,
}

_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)(ms|s|m|h|d)", re.ASCII)


def parse_duration(option: str, text: str | None) -> Duration | None:
    """A protobuf Duration; None as None. Raises `ConfigError` for what is none."""
    from google.protobuf.duration_pb2 import Duration

    if text is None:
        return None
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ConfigError(f"{option}: {text!r} is no duration; write it like 200ms, 1.5s or 10m")
    scaled = Decimal(match[1]) * UNITS_MS[match[2]]
    if scaled % 1:
        raise ConfigError(f"{option}: {text!r} is no whole number of milliseconds")
    value = Duration()
    value.FromMilliseconds(int(scaled))
    return value


def duration_text(value: Duration) -> str:
    """The shortest way to write it: 1,500 ms are `1.5s`, 600 s are `10m`."""
    milliseconds = value.ToMilliseconds()
    for unit in ("d", "h", "m"):
        if milliseconds and milliseconds % UNITS_MS[unit] == 0:
            return f"{milliseconds // UNITS_MS[unit]}{unit}"
    return f"{milliseconds}ms" if milliseconds < 1_000 else f"{milliseconds / 1_000:.12g}s"
