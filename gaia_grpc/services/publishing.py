"""From metric batches to the log: packing, commands of bounded size, and the results of both."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gaia.command.v1 import command_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc import errors
from gaia_grpc.services.ingress import Ingress, propose
from gaia_grpc.services.settings_cache import SettingsCache
from gaia_grpc.state.packing import Packing, pack_batch
from gaia_grpc.state.patterns import ERROR_TYPES

MAX_METRICS_PER_COMMAND = 20_000
"""Applying an entry can't be interrupted, so a large request becomes several entries."""
MAX_ERROR_BATCHES_PER_COMMAND = 8
"""Of one student in one app: each looks through that window for patterns. A thousand in one entry
would keep every peer from its heartbeats for seconds."""
PACK_SLICE_NS = 2_000_000
"""After this long of packing the loop gets its turn: peers wait for heartbeats."""

_REFUSED: Mapping[str, Callable[..., errors.GaiaError]] = {
    errors.AlreadyExistsError.reason: errors.AlreadyExistsError,
    errors.OutOfRangeError.reason: errors.OutOfRangeError,
    errors.ResourceExhaustedError.reason: errors.ResourceExhaustedError,
    errors.InvalidArgumentError.reason: errors.InvalidArgumentError,
}


@dataclass(frozen=True, slots=True)
class Published:
    """One result per batch, and where the last of the entries stands in the log."""

    results: list[metrics_pb2.BatchResult]
    term: int
    index: int


class Publisher:
    """Packs and proposes checked batches."""

    def __init__(self, ingress: Ingress, settings: SettingsCache) -> None:
        self._ingress = ingress
        self._settings = settings

    async def publish(
        self, batches: Sequence[metrics_pb2.MetricBatch], timeout_s: float
    ) -> Published:
        """Returns once all batches are committed; they are idempotent, so a retry is safe."""
        deadline_s = time.monotonic() + timeout_s
        packings = await self._pack(batches)
        results: list[metrics_pb2.BatchResult] = []
        term = index = 0
        for group in split(packings):
            body = command_pb2.PublishMetrics(batches=[packing.batch for packing in group])
            command = command_pb2.Command(publish_metrics=body).SerializeToString()
            remaining_s = max(deadline_s - time.monotonic(), 0.001)
            outcome = await propose(self._ingress.log, command, remaining_s)
            term, index = outcome.term, outcome.index
            applied = outcome.result.publish.results
            for packing, result in zip(group, applied, strict=True):
                result.rejected.extend(packing.rejected)
                results.append(result)
        return Published(results, term, index)

    async def _pack(self, batches: Sequence[metrics_pb2.MetricBatch]) -> list[Packing]:
        max_future_ms = await self._settings.milliseconds("metrics.max_future")
        packings = []
        slice_end_ns = time.perf_counter_ns() + PACK_SLICE_NS
        for batch in batches:
            packings.append(pack_batch(batch, max_future_ms=max_future_ms))
            if time.perf_counter_ns() >= slice_end_ns:
                await asyncio.sleep(0)
                slice_end_ns = time.perf_counter_ns() + PACK_SLICE_NS
        return packings


def split(packings: Sequence[Packing]) -> list[list[Packing]]:
    """Groups in the order of the request, each of one batch or of bounded work to apply."""
    groups: list[list[Packing]] = []
    room = 0
    with_errors: Counter[tuple[str, str, str]] = Counter()
    for packing in packings:
        batch = packing.batch
        window = (batch.timeline_id, batch.student_id, batch.app_name)
        # 8 bytes a value.
        count = sum(len(column.values_micro) // 8 for column in batch.columns)
        if not groups or count > room or with_errors[window] >= MAX_ERROR_BATCHES_PER_COMMAND:
            groups.append([])
            room = MAX_METRICS_PER_COMMAND
            with_errors.clear()
        groups[-1].append(packing)
        room -= count
        if any(column.metric_type in ERROR_TYPES for column in batch.columns):
            with_errors[window] += 1
    return groups


def batch_refusal(result: metrics_pb2.BatchResult) -> errors.GaiaError | None:
    """The error that a refused batch stands for; None where it was stored."""
    if result.status != metrics_pb2.BATCH_STATUS_REFUSED:
        return None
    refused = _REFUSED.get(result.reason, errors.FailedPreconditionError)
    return refused(
        result.message,
        reason=result.reason,
        metadata={"source_id": result.source_id, "sequence": str(result.sequence)},
    )


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
