"""Replicated settings: every timer and limit that apply depends on, with its bounds.

Pure functions of text, so that a command line or a starting peer refuses a bad `--set` at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TypeAlias

from gaia_grpc.errors import FieldViolation, InvalidArgumentError
from gaia_grpc.state.feature_levels import FEATURE_LEVEL, FIRST_LEVEL
from gaia_grpc.state.models import MODELS
from gaia_grpc.state.setting_table import ORDERED_PAIRS, ROWS, SINCE_LEVELS

Value: TypeAlias = int | float | str
"""Durations are whole milliseconds; retentions are the text in its one form."""


class SettingKind(StrEnum):
    """How the value of a setting is written."""

    DURATION = "duration"
    INTEGER = "int"
    FLOAT = "float"
    RETENTIONS = "retentions"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Definition:
    """One setting; default and bounds are written as its values are, the bounds included."""

    name: str
    kind: SettingKind
    default: str
    minimum: str
    maximum: str
    description: str


UNITS_MS: Mapping[str, int] = MappingProxyType(
    {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
)
METRIC_TYPE = re.compile(r"[A-Za-z0-9._:-]{1,128}")
MAX_RETENTIONS = 100
NO_RETENTIONS = "none"
DURATION = re.compile(r"(\d{1,12})(?:\.(\d{1,9}))?(ms|s|m|h|d)", re.ASCII)
INTEGER = re.compile(r"-?\d{1,15}", re.ASCII)
FLOAT = re.compile(r"-?\d{1,15}(?:\.\d{1,15})?(?:e-?\d{1,2})?", re.ASCII)

DEFINITIONS: tuple[Definition, ...] = tuple(
    sorted(
        (Definition(name, SettingKind(kind), *rest) for name, kind, *rest in ROWS),
        key=lambda definition: definition.name,
    )
)
BY_NAME: Mapping[str, Definition] = MappingProxyType(
    {definition.name: definition for definition in DEFINITIONS}
)


def parse_duration_ms(text: str) -> int:
    """`1.5s`, `200ms`, `10m`, `2h`, `1d` in milliseconds. Raises ValueError."""
    match = DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no duration; write it like 200ms, 1.5s or 10m")
    whole, fraction, unit = match.group(1), match.group(2) or "", match.group(3)
    scaled = int(whole + fraction) * UNITS_MS[unit]
    scale: int = 10 ** len(fraction)
    milliseconds, rest = divmod(scaled, scale)
    if rest:
        raise ValueError(f"{text!r} is no whole number of milliseconds")
    return milliseconds


def format_duration(milliseconds: int) -> str:
    """The shortest way to write a duration: 1500 is `1.5s`, 600000 is `10m`."""
    for unit in ("d", "h", "m"):
        if milliseconds and milliseconds % UNITS_MS[unit] == 0:
            return f"{milliseconds // UNITS_MS[unit]}{unit}"
    if milliseconds < UNITS_MS["s"]:
        return f"{milliseconds}ms"
    whole, rest = divmod(milliseconds, UNITS_MS["s"])
    return f"{whole}.{rest:03d}".rstrip("0").rstrip(".") + "s"


def parse_retentions(text: str) -> Mapping[str, int]:
    """`keypress=1h error=30d` in milliseconds by name, `none` is none; commas will do too.

    Raises ValueError.
    """
    found: dict[str, int] = {}
    for part in text.replace(",", " ").split() if text != NO_RETENTIONS else ():
        name, _, duration = part.partition("=")
        if METRIC_TYPE.fullmatch(name) is None or name in found:
            raise ValueError(f"{part!r} is not one metric type and how long it is kept")
        found[name] = parse_duration_ms(duration)
    if len(found) > MAX_RETENTIONS:
        raise ValueError(f"at most {MAX_RETENTIONS} metric types")
    return found


def parse_value(kind: SettingKind, text: str) -> Value:
    """A value without its bounds. Raises ValueError."""
    if kind is SettingKind.RETENTIONS:
        found = parse_retentions(text)
        texts = [f"{name}={format_duration(found[name])}" for name in sorted(found)]
        return " ".join(texts) or NO_RETENTIONS
    if kind is SettingKind.DURATION:
        return parse_duration_ms(text)
    if kind is SettingKind.MODEL:
        if text not in MODELS:
            raise ValueError(f"{text!r} is no model; there are {', '.join(sorted(MODELS))}")
        return text
    if kind is SettingKind.INTEGER:
        if INTEGER.fullmatch(text) is None:
            raise ValueError(f"{text!r} is no whole number")
        return int(text)
    if FLOAT.fullmatch(text) is None or not math.isfinite(float(text)):
        raise ValueError(f"{text!r} is no number")
    return float(text)


def known_at(level: int) -> tuple[Definition, ...]:
    """The settings that a cluster with this feature level has, in the order of their names."""
    return tuple(each for each in DEFINITIONS if SINCE_LEVELS.get(each.name, FIRST_LEVEL) <= level)


def parse_setting(name: str, text: str, *, level: int = FEATURE_LEVEL) -> Value:
    """The value of one setting that a cluster with this feature level has.

    Raises `InvalidArgumentError`; its fields are `name` or `value`.
    """
    definition = BY_NAME.get(name)
    if definition is None or SINCE_LEVELS.get(name, FIRST_LEVEL) > level:
        raise _violation("name", f"no setting {name!r}")
    try:
        value = parse_value(definition.kind, text)
    except ValueError as error:
        raise _violation("value", f"{name}: {error}") from error
    if definition.kind is SettingKind.MODEL and MODELS[str(value)].since_level > level:
        raise _violation("value", f"{name}: {text} needs a later feature level of the cluster")
    if not _within(definition, value):
        bounds = f"{definition.minimum} to {definition.maximum}"
        raise _violation("value", f"{name}: {text} is not within {bounds}")
    return value


def _within(definition: Definition, value: Value) -> bool:
    """Whether the value, or each of its durations, is within the bounds."""
    if definition.kind is SettingKind.MODEL:
        return True
    if isinstance(value, str):
        low, high = parse_duration_ms(definition.minimum), parse_duration_ms(definition.maximum)
        return all(low <= each <= high for each in parse_retentions(value).values())
    lowest = float(parse_value(definition.kind, definition.minimum))
    highest = float(parse_value(definition.kind, definition.maximum))
    return lowest <= value <= highest


def format_setting(definition: Definition, value: Value) -> str:
    """The value as text; parses to the same value."""
    if definition.kind is SettingKind.DURATION:
        return format_duration(int(value))
    return value if isinstance(value, str) else repr(value)


class Settings:
    """All values at one version; immutable."""

    __slots__ = ("_values", "version")

    def __init__(self, values: Mapping[str, Value] | None = None, version: int = 0) -> None:
        self._values: Mapping[str, Value] = DEFAULTS if values is None else values
        self.version = version

    def value(self, name: str) -> Value:
        """The value of any kind; durations in milliseconds."""
        return self._values[name]

    def milliseconds(self, name: str) -> int:
        """The value of a duration."""
        return int(self._values[name])

    def retentions(self, name: str) -> Mapping[str, int]:
        """The durations of a value of retentions, by metric type."""
        return parse_retentions(str(self._values[name]))

    def integer(self, name: str) -> int:
        """The value of a whole number."""
        return int(self._values[name])

    def text(self, name: str) -> str:
        """The value of a model: its version."""
        return str(self._values[name])

    def number(self, name: str) -> float:
        """The value of a float."""
        return float(self._values[name])

    def texts(self, level: int = FEATURE_LEVEL) -> list[tuple[str, str]]:
        """(name, value) of all settings that the level has, in the order of their names."""
        return [
            (definition.name, format_setting(definition, self._values[definition.name]))
            for definition in known_at(level)
        ]

    def changed(
        self,
        changes: Sequence[tuple[str, str]],
        *,
        version: int,
        field: str = "settings",
        level: int = FEATURE_LEVEL,
    ) -> Settings:
        """These settings with all of the changes (of `--set` too: `Settings().changed(...)`).

        Raises `InvalidArgumentError` with the field; also for a setting that a cluster with the
        feature level `level` does not have.
        """
        values = dict(self._values)
        seen: set[str] = set()
        for position, (name, text) in enumerate(changes):
            where = f"{field}[{position}]"
            try:
                values[name] = parse_setting(name, text, level=level)
            except InvalidArgumentError as error:
                first = error.violations[0]
                raise _violation(f"{where}.{first.field}", first.description) from error
            if name in seen:
                raise _violation(f"{where}.name", f"{name} is named twice")
            seen.add(name)
        for low, high in ORDERED_PAIRS:
            if float(values[low]) >= float(values[high]):
                position = max(
                    (place for place, change in enumerate(changes) if change[0] in (low, high)),
                )
                raise _violation(f"{field}[{position}].value", f"{low} must be less than {high}")
        return Settings(MappingProxyType(values), version)


def _violation(field: str, description: str) -> InvalidArgumentError:
    return InvalidArgumentError(description, [FieldViolation(field, description)])


DEFAULTS: Mapping[str, Value] = MappingProxyType(
    {
        definition.name: parse_setting(definition.name, definition.default)
        for definition in DEFINITIONS
    }
)
