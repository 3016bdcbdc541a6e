"""Refusals: commands and queries that were understood and not done. A refusal is a normal result.

A handler raises `Refused` before it changes anything; the machine turns it into the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from gaia.command.v1 import command_pb2

Kind: TypeAlias = command_pb2.RefusalKind

INVALID_ARGUMENT = command_pb2.REFUSAL_KIND_INVALID_ARGUMENT
NOT_FOUND = command_pb2.REFUSAL_KIND_NOT_FOUND
ALREADY_EXISTS = command_pb2.REFUSAL_KIND_ALREADY_EXISTS
FAILED_PRECONDITION = command_pb2.REFUSAL_KIND_FAILED_PRECONDITION
OUT_OF_RANGE = command_pb2.REFUSAL_KIND_OUT_OF_RANGE
RESOURCE_EXHAUSTED = command_pb2.REFUSAL_KIND_RESOURCE_EXHAUSTED
UNIMPLEMENTED = command_pb2.REFUSAL_KIND_UNIMPLEMENTED


class Refused(Exception):  # noqa: N818  # a result and not an error
    """Ends a handler with a refusal; `transient` ones may turn out otherwise when repeated."""

    def __init__(self, refusal: command_pb2.Refusal, *, transient: bool) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.transient = transient


def refused(
    kind: Kind.ValueType,
    reason: str,
    message: str,
    *,
    field: str = "",
    details: Mapping[str, str] | None = None,
    retry_after_ms: int = 0,
    transient: bool = False,
) -> Refused:
    """Builds the exception; exhausted limits and unserved methods are transient by nature."""
    refusal = command_pb2.Refusal(
        kind=kind,
        reason=reason,
        message=message,
        field=field,
        retry_after_ms=retry_after_ms,
        details=[
            command_pb2.RefusalDetail(key=key, value=value)
            for key, value in sorted((details or {}).items())
        ],
    )
    # A malformed request changes nothing and is malformed again: keeping it would only take room.
    transient = transient or kind in (RESOURCE_EXHAUSTED, UNIMPLEMENTED, INVALID_ARGUMENT)
    return Refused(refusal, transient=transient)


def invalid(field: str, message: str) -> Refused:
    """INVALID_ARGUMENT on one field."""
    return refused(INVALID_ARGUMENT, "INVALID_ARGUMENT", message, field=field)


def not_found(what: str, key: str) -> Refused:
    """NOT_FOUND of a record: `what` is its noun (`task`), `key` its id."""
    return refused(NOT_FOUND, "NOT_FOUND", f"no {what} {key!r}", details={what: key})


def unimplemented(name: str) -> Refused:
    """UNIMPLEMENTED of a part of the contract that comes later."""
    return refused(UNIMPLEMENTED, "UNIMPLEMENTED", f"{name} is not served yet")


def feature_level_too_low(name: str, level: int) -> Refused:
    """FAILED_PRECONDITION of a command that some peer may not understand yet."""
    return refused(
        FAILED_PRECONDITION,
        "FEATURE_LEVEL",
        f"{name} needs the feature level {level}, which the cluster does not have yet",
        details={"required_feature_level": str(level)},
        transient=True,
    )
