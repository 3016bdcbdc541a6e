"""What it means to a caller that a batch of metrics was not stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gaia.metrics.v1 import metrics_pb2

from gaia_grpc import errors

FULL_RETRY_MS = 1_000
"""For a batch that the state has no room for now."""

_REFUSED: Mapping[str, Callable[..., errors.GaiaError]] = {
    errors.AlreadyExistsError.reason: errors.AlreadyExistsError,
    errors.OutOfRangeError.reason: errors.OutOfRangeError,
    errors.ResourceExhaustedError.reason: errors.ResourceExhaustedError,
    errors.InvalidArgumentError.reason: errors.InvalidArgumentError,
}


def batch_refusal(result: metrics_pb2.BatchResult) -> errors.GaiaError | None:
    """The error that a refused batch stands for; None where it was stored."""
    if result.status != metrics_pb2.BATCH_STATUS_REFUSED:
        return None
    refused = _REFUSED.get(result.reason, errors.FailedPreconditionError)
    error = refused(
        result.message,
        reason=result.reason,
        metadata={"source_id": result.source_id, "sequence": str(result.sequence)},
    )
    if isinstance(error, errors.ResourceExhaustedError):
        error.retry_after_ms = FULL_RETRY_MS
    return error


def invalid_result(
    batch: metrics_pb2.MetricBatch, error: errors.InvalidArgumentError
) -> metrics_pb2.BatchResult:
    """The result of a batch of a stream that is not well formed."""
    return metrics_pb2.BatchResult(
        source_id=batch.source_id,
        source_epoch=batch.source_epoch,
        sequence=batch.sequence,
        status=metrics_pb2.BATCH_STATUS_REFUSED,
        reason=error.instance_reason,
        message=error.message,
    )
