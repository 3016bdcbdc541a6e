"""The one table from domain errors to gRPC codes, with `google.rpc` details on every error.

Servicers never name a status code: they raise `GaiaError`s, and the interceptor asks here what
goes over the wire. What has no row is a bug, so its text stays inside: the caller gets INTERNAL
with an error id, and the log gets the rest under that id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import grpc
from gaia.command.v1 import command_pb2
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from gaia_grpc import errors
from gaia_grpc.errors import DOMAIN, FieldViolation, GaiaError

STATUS_DETAILS_KEY = "grpc-status-details-bin"
INTERNAL_REASON = "INTERNAL"

# A client turns trailers of more than 8 KiB away, now and then at first (gRPC's soft limit) and
# always beyond 16 KiB. Details travel in base64 and the message a second time, percent-encoded:
# these four keep the sum under 7 KiB, whatever is in them.
MAX_MESSAGE_SIZE_BYTES = 900
MAX_METADATA_SIZE_BYTES = 1_200
MAX_VIOLATIONS_SIZE_BYTES = 1_800
MAX_TEXT_SIZE_BYTES = 200
"""Of one value of the metadata, one field and one description."""


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """What an error class becomes; `retry_after_ms` is the advice where the error brings none."""

    code: grpc.StatusCode
    retry_after_ms: int = 0


ERROR_TABLE: Mapping[type[GaiaError], ErrorRow] = {
    errors.InvalidArgumentError: ErrorRow(grpc.StatusCode.INVALID_ARGUMENT),
    errors.NotFoundError: ErrorRow(grpc.StatusCode.NOT_FOUND),
    errors.AlreadyExistsError: ErrorRow(grpc.StatusCode.ALREADY_EXISTS),
    errors.StaleClaimError: ErrorRow(grpc.StatusCode.FAILED_PRECONDITION),
    errors.StaleLockError: ErrorRow(grpc.StatusCode.FAILED_PRECONDITION),
    errors.ConfigurationRefusedError: ErrorRow(grpc.StatusCode.FAILED_PRECONDITION),
    errors.FailedPreconditionError: ErrorRow(grpc.StatusCode.FAILED_PRECONDITION),
    errors.IdentityRefusedError: ErrorRow(grpc.StatusCode.FAILED_PRECONDITION),
    errors.OutOfRangeError: ErrorRow(grpc.StatusCode.OUT_OF_RANGE),
    errors.ResourceExhaustedError: ErrorRow(grpc.StatusCode.RESOURCE_EXHAUSTED, 1_000),
    errors.StorageFullError: ErrorRow(grpc.StatusCode.RESOURCE_EXHAUSTED, 5_000),
    errors.OverloadedError: ErrorRow(grpc.StatusCode.RESOURCE_EXHAUSTED, 200),
    errors.UnimplementedError: ErrorRow(grpc.StatusCode.UNIMPLEMENTED),
    errors.PermissionDeniedError: ErrorRow(grpc.StatusCode.PERMISSION_DENIED),
    errors.NotLeaderError: ErrorRow(grpc.StatusCode.UNAVAILABLE, 50),
    errors.DrainingError: ErrorRow(grpc.StatusCode.UNAVAILABLE, 50),
    errors.UnavailableError: ErrorRow(grpc.StatusCode.UNAVAILABLE, 100),
    errors.OutcomeUnknownError: ErrorRow(grpc.StatusCode.UNAVAILABLE, 100),
}

_BY_REASON: Mapping[str, Callable[..., GaiaError]] = {
    error.reason: error for error in (errors.StaleClaimError, errors.StaleLockError)
}
_REFUSALS: Mapping[int, Callable[..., GaiaError]] = {
    command_pb2.REFUSAL_KIND_NOT_FOUND: errors.NotFoundError,
    command_pb2.REFUSAL_KIND_ALREADY_EXISTS: errors.AlreadyExistsError,
    command_pb2.REFUSAL_KIND_FAILED_PRECONDITION: errors.FailedPreconditionError,
    command_pb2.REFUSAL_KIND_OUT_OF_RANGE: errors.OutOfRangeError,
    command_pb2.REFUSAL_KIND_RESOURCE_EXHAUSTED: errors.ResourceExhaustedError,
    command_pb2.REFUSAL_KIND_UNIMPLEMENTED: errors.UnimplementedError,
}


@dataclass(frozen=True, slots=True)
class WireError:
    """An error as it leaves the process: `details` is a serialized `google.rpc.Status`."""

    code: grpc.StatusCode
    message: str
    details: bytes
    reason: str


def find_row(error: BaseException) -> ErrorRow | None:
    """The row of the nearest class in the error's ancestry; None for a bug."""
    for ancestor in type(error).__mro__:
        row = ERROR_TABLE.get(ancestor)
        if row is not None:
            return row
    return None


def to_wire(error: GaiaError, row: ErrorRow, leader_address: str = "") -> WireError:
    """Code, message and details of an error that has a row."""
    metadata = dict(error.metadata)
    if leader_address and row.code is grpc.StatusCode.UNAVAILABLE:
        metadata.setdefault("leader_address", leader_address)
    details: list[Message] = [_error_info(error.instance_reason, metadata)]
    if isinstance(error, errors.InvalidArgumentError):
        details.append(_bad_request(error.violations))
    retry_after_ms = row.retry_after_ms if error.retry_after_ms is None else error.retry_after_ms
    if retry_after_ms > 0:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(retry_after_ms)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return _wire(row.code, error.message, details, error.instance_reason)


def internal_error(error_id: str) -> WireError:
    """What a bug looks like from outside: an id to look up in the peer's log, and nothing else."""
    message = f"internal error {error_id}; the peer's log has the details under this id"
    return _wire(
        grpc.StatusCode.INTERNAL,
        message,
        [_error_info(INTERNAL_REASON, {"error_id": error_id})],
        INTERNAL_REASON,
    )


def refusal_error(refusal: command_pb2.Refusal) -> GaiaError:
    """The error that a refusal of the state machine stands for."""
    metadata = {detail.key: detail.value for detail in refusal.details}
    reason = refusal.reason or None
    if refusal.kind == command_pb2.REFUSAL_KIND_INVALID_ARGUMENT:
        violations = [FieldViolation(refusal.field, refusal.message)] if refusal.field else []
        return errors.InvalidArgumentError(
            refusal.message, violations, metadata=metadata, reason=reason
        )
    refused = _BY_REASON.get(refusal.reason) or _REFUSALS.get(refusal.kind, errors.InvariantError)
    return refused(
        refusal.message,
        metadata=metadata,
        retry_after_ms=refusal.retry_after_ms or None,
        reason=reason,
    )


def _wire(
    code: grpc.StatusCode, message: str, details: Sequence[Message], reason: str
) -> WireError:
    """Packs everything into a Status; the message goes both ways, as every gRPC library expects."""
    message = _clip(message, MAX_MESSAGE_SIZE_BYTES)
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return WireError(code, message, status.SerializeToString(), reason)


def _error_info(reason: str, metadata: Mapping[str, str]) -> error_details_pb2.ErrorInfo:
    """Entries in the order of their keys, as many as fit."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)
    size_bytes = 0
    for key, value in sorted(metadata.items()):
        clipped = _clip(value, MAX_TEXT_SIZE_BYTES)
        size_bytes += len(key) + len(clipped.encode()) + 8
        if size_bytes > MAX_METADATA_SIZE_BYTES:
            break
        info.metadata[key] = clipped
    return info


def _bad_request(violations: Sequence[FieldViolation]) -> error_details_pb2.BadRequest:
    """As many violations as fit, and one more that says how many were left out."""
    request = error_details_pb2.BadRequest()
    size_bytes = 0
    for position, violation in enumerate(violations):
        field = _clip(violation.field, MAX_TEXT_SIZE_BYTES)
        description = _clip(violation.description, MAX_TEXT_SIZE_BYTES)
        size_bytes += len(field.encode()) + len(description.encode()) + 8
        if size_bytes > MAX_VIOLATIONS_SIZE_BYTES:
            left_out = f"and {len(violations) - position} more violations"
            request.field_violations.add(field="", description=left_out)
            break
        request.field_violations.add(field=field, description=description)
    return request


def _clip(text: str, most_bytes: int) -> str:
    """The text, or as much of its begin as is `most_bytes` long when percent-encoded."""
    if len(text) * 12 <= most_bytes:
        return text
    kept_bytes = 0
    for position, character in enumerate(text):
        # Only what is printable ASCII, and no %, goes as it is.
        plain = " " <= character <= "~" and character != "%"
        kept_bytes += 1 if plain else 3 * len(character.encode(errors="replace"))
        if kept_bytes > most_bytes - 3:
            return text[:position] + "..."
    return text
