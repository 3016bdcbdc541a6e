"""From a gRPC failure back to the error tree.

The reason in `google.rpc.ErrorInfo` (domain `gaia`) decides, then the status code. What a code says
about the outcome follows the contracts: the codes of a refusal mean "definitely not applied", and
UNAVAILABLE does so only with the reason NO_QUORUM or DRAINING. Everything else is unknown.
"""

from __future__ import annotations

import re

import grpc
from google.rpc import error_details_pb2, status_pb2

from gaia_grpc.errors import (
    DOMAIN,
    AlreadyExistsError,
    DrainingError,
    FailedPreconditionError,
    FieldViolation,
    GaiaError,
    InvalidArgumentError,
    NotFoundError,
    NotLeaderError,
    OutcomeUnknownError,
    OutOfRangeError,
    OverloadedError,
    PermissionDeniedError,
    ResourceExhaustedError,
    StaleClaimError,
    StaleLockError,
    UnavailableError,
    UnimplementedError,
)

DETAILS_KEY = "grpc-status-details-bin"
LEADER_KEY = "gaia-leader"

UNREACHABLE = "UNREACHABLE"
"""Reason where no connection came about: the request never left, so it was not applied."""

_NOT_CONNECTED = "failed to connect to all addresses"
"""How gRPC words a call that found no connection; every other UNAVAILABLE may have been sent."""

_BY_REASON: dict[str, type[GaiaError]] = {
    error.reason: error
    for error in (
        DrainingError,
        OutcomeUnknownError,
        OverloadedError,
        StaleClaimError,
        StaleLockError,
        UnavailableError,
    )
}

_BY_CODE: dict[grpc.StatusCode, type[GaiaError]] = {
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRangeError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNAUTHENTICATED: PermissionDeniedError,
}


def leader_hint(metadata: grpc.aio.Metadata | None) -> str:
    """The client address of the leader in the trailers; empty where there is none."""
    for key, value in metadata or ():
        if key == LEADER_KEY and isinstance(value, str):
            return value
    return ""


def to_gaia_error(error: grpc.aio.AioRpcError) -> GaiaError:
    """Translates one failed attempt; the caller raises the result `from error`."""
    code = error.code()
    text = error.details() or code.name
    info, violations, retry_after_ms = _details(error)
    reason = info.reason if info is not None and info.domain == DOMAIN else ""
    metadata = dict(info.metadata) if info is not None else {}
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidArgumentError(text, violations, metadata=metadata, reason=reason or None)
    if reason == NotLeaderError.reason:
        return NotLeaderError(text, leader_id=metadata.get("leader_id", ""))
    if code is grpc.StatusCode.UNAVAILABLE and not reason:
        if _NOT_CONNECTED in text:
            return UnavailableError(_unreachable_text(text), reason=UNREACHABLE)
        return OutcomeUnknownError(f"the connection was lost: {text}")
    known = _BY_REASON.get(reason) or _BY_CODE.get(code) or OutcomeUnknownError
    return known(
        text,
        metadata=metadata,
        retry_after_ms=retry_after_ms,
        reason=reason or (code.name if known is OutcomeUnknownError else None),
    )


def _unreachable_text(text: str) -> str:
    """gRPC's report of a failed connection without its inner names: the address and the cause."""
    found = re.search(r"last error: \w+: (?:ipv[46]:)?(?P<address>\S+): (?P<cause>.+)$", text)
    if found is None:
        return f"no connection: {text}"
    cause = found["cause"].removeprefix("Failed to connect to remote host: ")
    return f"no connection to {found['address']}: {cause}"


def _details(
    error: grpc.aio.AioRpcError,
) -> tuple[error_details_pb2.ErrorInfo | None, list[FieldViolation], int | None]:
    """ErrorInfo, field violations and retry time (ms) of the status details, as far as present."""
    info: error_details_pb2.ErrorInfo | None = None
    violations: list[FieldViolation] = []
    retry_after_ms: int | None = None
    for key, value in error.trailing_metadata() or ():
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        for detail in status_pb2.Status.FromString(value).details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo()
                detail.Unpack(info)
            elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                bad = error_details_pb2.BadRequest()
                detail.Unpack(bad)
                violations += [
                    FieldViolation(item.field, item.description) for item in bad.field_violations
                ]
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry = error_details_pb2.RetryInfo()
                detail.Unpack(retry)
                retry_after_ms = retry.retry_delay.ToMilliseconds()
    return info, violations, retry_after_ms
