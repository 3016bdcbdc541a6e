"""Durations on the command line have the form of the settings."""

from __future__ import annotations

import pytest

from gaia_grpc.cli.durations import duration_text, parse_duration
from gaia_grpc.errors import ConfigError
from gaia_grpc.state.settings import format_duration, parse_duration_ms


@pytest.mark.parametrize(
    "text", ["0ms", "1ms", "999ms", "1s", "1.5s", "61s", "1.001s", "1m", "90m", "2h", "1d", "0.5h"]
)
def test_they_are_read_and_written_as_the_settings_are(text: str) -> None:
    value = parse_duration("--delay", text)
    assert value is not None
    assert value.ToMilliseconds() == parse_duration_ms(text)
    assert duration_text(value) == format_duration(value.ToMilliseconds())


@pytest.mark.parametrize(
    "text", ["", "1", "-1s", "1y", "1.0001s", "0.5ms", "1e3s", " 1s", "1 s", "\u0661s"]
)
def test_what_is_no_duration_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="--delay: "):
        parse_duration("--delay", text)


def test_none_stays_none() -> None:
    assert parse_duration("--delay", None) is None
