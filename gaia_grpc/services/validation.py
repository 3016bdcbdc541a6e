"""Checks of the form of a request: a table of fields and rules a message, all violations at once.

Only what can be told from the request alone is checked here; what depends on the state is refused
by the state machine. Paths are those of the proto (`tasks[3].task_type`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from gaia_grpc.config import split_address
from gaia_grpc.errors import ConfigError, FieldViolation, InvalidArgumentError

Rule: TypeAlias = Callable[[Any], str]
"""Says what is wrong with a value, in words that follow the field's name; empty: nothing."""

ID_RULE = "must match [A-Za-z0-9._:-]{1,128}"
MAX_COLLECTED = 1_000
"""Violations that are collected of one request; no caller reads more."""

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROL_BUT_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def is_id(text: str) -> bool:
    """Whether `text` is an id."""
    return _ID.fullmatch(text) is not None


def required_id(value: str) -> str:
    """An id that must be there."""
    if _ID.fullmatch(value) is not None:
        return ""
    return ID_RULE if value else "is required"


def optional_id(value: str) -> str:
    """An id, or nothing."""
    return "" if not value or _ID.fullmatch(value) is not None else ID_RULE


def host_and_port(value: str) -> str:
    """An address of the form host:port that must be there."""
    if not value:
        return "is required"
    try:
        split_address(value)
    except ConfigError:
        return "must be HOST:PORT"
    return ""


def text(most: int, *, least: int = 0, lines: bool = False) -> Rule:
    """Text of `least` to `most` characters without control characters; `lines` may break lines."""
    control = _CONTROL_BUT_LINES if lines else _CONTROL

    def check(value: str) -> str:
        if len(value) < least:
            return "is required" if not value else f"must have at least {least} characters"
        if len(value) > most:
            return f"has {len(value)} characters, at most {most} are allowed"
        return "must not hold control characters" if control.search(value) else ""

    return check


def whole(least: int, most: int) -> Rule:
    """A whole number within bounds."""

    def check(value: int) -> str:
        return "" if least <= value <= most else f"must be {least} to {most}, is {value}"

    return check


def at_least(least: int) -> Rule:
    """A whole number with a lower bound."""

    def check(value: int) -> str:
        return "" if value >= least else f"must be at least {least}, is {value}"

    return check


def zero_or(least: int, most: int) -> Rule:
    """A whole number within bounds, or 0 for the default."""

    def check(value: int) -> str:
        if value == 0 or least <= value <= most:
            return ""
        return f"must be 0 or {least} to {most}, is {value}"

    return check


def fraction(value: float) -> str:
    """A number from 0 to 1; NaN is none."""
    return "" if 0.0 <= value <= 1.0 else f"must be 0 to 1, is {value}"


def size(most_bytes: int) -> Rule:
    """Bytes up to a size."""

    def check(value: bytes) -> str:
        if len(value) <= most_bytes:
            return ""
        return f"has {len(value)} bytes, at most {most_bytes} are allowed"

    return check


def enum(known: Iterable[int]) -> Rule:
    """A value that the contract knows; proto3 lets any number through."""
    values = frozenset(known)

    def check(value: int) -> str:
        return "" if value in values else f"is {value}, which is no known value"

    return check


def duration(most_ms: int, *, least_ms: int = 0) -> Rule:
    """A well-formed Duration within bounds; an unset one reads as 0."""

    def check(value: Duration) -> str:
        milliseconds = value.seconds * 1000 + value.nanos // 1_000_000
        if not 0 <= value.nanos < 1_000_000_000 or not least_ms <= milliseconds <= most_ms:
            return f"must be {_in_units(least_ms)} to {_in_units(most_ms)}"
        return ""

    return check


def _in_units(milliseconds: int) -> str:
    """In the largest unit that has a whole number: 2592000000 ms are `30d`."""
    for unit, size_ms in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if milliseconds and milliseconds % size_ms == 0:
            return f"{milliseconds // size_ms}{unit}"
    return f"{milliseconds}ms"


def each(rule: Rule, most: int) -> Rule:
    """A list of plain values, at most `most`, each by the rule; names the first that is wrong."""

    def check(values: Sequence[Any]) -> str:
        if len(values) > most:
            return f"has {len(values)} items, at most {most} are allowed"
        for position, value in enumerate(values):
            wrong = rule(value)
            if wrong:
                return f"item {position} {wrong}"
        return ""

    return check


@dataclass(frozen=True, slots=True)
class Part:
    """A field that holds a message, or nothing."""

    rules: Rules


@dataclass(frozen=True, slots=True)
class Items:
    """A field that holds `least` to `most` messages; `unique` names a field that may not repeat."""

    rules: Rules
    most: int
    least: int = 0
    unique: str = ""


@dataclass(frozen=True, slots=True)
class WhenSet:
    """A field with presence whose rule holds only where it is set: a zero is a value then."""

    rule: Rule


Rules: TypeAlias = Mapping[str, "Rule | Part | Items | WhenSet"]
"""Field name -> what it must be."""
Check: TypeAlias = Callable[[Any], Iterable[FieldViolation]]
"""What is wrong with a whole request whose fields are right one by one."""


class Validator:
    """Checks requests by a table from message type to rules."""

    def __init__(
        self,
        table: Mapping[type[Message], Rules],
        checks: Mapping[type[Message], Check] | None = None,
    ) -> None:
        self._plans = {message: _Plan(rules) for message, rules in table.items()}
        self._checks = dict(checks or {})

    @property
    def fields(self) -> Mapping[type[Message], Sequence[str]]:
        """The fields with a rule, by message type."""
        return {message: plan.fields for message, plan in self._plans.items()}

    def check(self, request: Message) -> None:
        """Raises `InvalidArgumentError` with every violation; a type without rules is a bug."""
        found: list[FieldViolation] = []
        self._plans[type(request)].collect(request, "", found)
        check = self._checks.get(type(request))
        if check is not None and not found:
            found += islice(check(request), MAX_COLLECTED)
        if not found:
            return
        first = f"{found[0].field} {found[0].description}"
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise InvalidArgumentError(first + more, found)


class _Plan:
    """The rules of one message, sorted out once: a batch is checked a thousand times by one."""

    __slots__ = ("_items", "_parts", "_plain", "_when_set", "fields")

    def __init__(self, rules: Rules) -> None:
        self.fields = tuple(rules)
        self._plain: list[tuple[str, Rule]] = []
        self._when_set: list[tuple[str, Rule]] = []
        self._parts: list[tuple[str, _Plan]] = []
        self._items: list[tuple[str, Items, _Plan]] = []
        for name, rule in rules.items():
            if isinstance(rule, WhenSet):
                self._when_set.append((name, rule.rule))
            elif isinstance(rule, Part):
                self._parts.append((name, _Plan(rule.rules)))
            elif isinstance(rule, Items):
                self._items.append((name, rule, _Plan(rule.rules)))
            else:
                self._plain.append((name, rule))

    def collect(self, message: Any, prefix: str, found: list[FieldViolation]) -> None:
        """Adds what is wrong with the message at `prefix`."""
        for name, rule in self._plain:
            wrong = rule(getattr(message, name))
            if wrong and len(found) < MAX_COLLECTED:
                found.append(FieldViolation(prefix + name, wrong))
        for name, rule in self._when_set:
            wrong = rule(getattr(message, name)) if message.HasField(name) else ""
            if wrong and len(found) < MAX_COLLECTED:
                found.append(FieldViolation(prefix + name, wrong))
        for name, part in self._parts:
            part.collect(getattr(message, name), f"{prefix}{name}.", found)
        for name, items, plan in self._items:
            plan.collect_items(items, getattr(message, name), prefix + name, found)

    def collect_items(
        self, items: Items, values: Sequence[Any], path: str, found: list[FieldViolation]
    ) -> None:
        """Adds what is wrong with a list at `path`, or with one of its items."""
        count = len(values)
        if not items.least <= count <= items.most:
            wrong = "is required"
            if count:
                wrong = f"has {count} items, {items.least} to {items.most} are allowed"
            found.append(FieldViolation(path, wrong))
            return
        if not self.fields:
            return
        seen: set[Any] = set()
        for position, value in enumerate(values):
            self.collect(value, f"{path}[{position}].", found)
            if items.unique:
                key = getattr(value, items.unique)
                if key in seen:
                    place = f"{path}[{position}].{items.unique}"
                    found.append(FieldViolation(place, "is there twice"))
                seen.add(key)
