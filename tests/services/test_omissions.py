"""Gap marks through the served port: with metrics, alone, and in a cluster that is older."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from gaia.metrics.v1 import metrics_pb2

from tests.support.served_peer import TIMEOUT_S, ServedPeer, failure_of


async def publish(
    peer: ServedPeer, sequence: int, keys: int, *marks: tuple[str, int], **fields: Any
) -> metrics_pb2.BatchResult:
    batch = metrics_pb2.MetricBatch(
        source_id="tablet-1",
        source_epoch=1,
        sequence=sequence,
        student_id="ana",
        app_name="math",
        classroom_id="5b",
        metrics=[metrics_pb2.Metric(metric_type="keypress", value=1)] * keys,
        omissions=[metrics_pb2.Omission(metric_type=kind, count=count) for kind, count in marks],
        **fields,
    )
    request = metrics_pb2.PublishMetricsRequest(batches=[batch])
    return (await peer.metrics.PublishMetrics(request, timeout=TIMEOUT_S)).results[0]


async def window(peer: ServedPeer) -> metrics_pb2.Aggregate:
    request = metrics_pb2.GetAggregateRequest(student_id="ana", app_name="math")
    return (await peer.metrics.GetAggregate(request, timeout=TIMEOUT_S)).aggregate


async def test_marks_are_counted_once_with_metrics_and_alone(peer: ServedPeer) -> None:
    for _ in range(2):
        await publish(peer, 1, 6, ("keypress", 2), ("", 4))
        alone = await publish(peer, 2, 0, ("error", 3))
    assert (alone.status, alone.accepted_count) == (metrics_pb2.BATCH_STATUS_DUPLICATE, 0)
    found = await window(peer)
    assert (found.accepted_total, found.omitted_total) == (6, 9)
    assert found.completeness == 6 / 15
    rows = [(each.metric_type, each.count, each.omitted_count) for each in found.metrics]
    assert rows == [("error", 0, 3), ("keypress", 6, 2)]
    assert found.metrics[1].completeness == 6 / 8


async def test_a_batch_with_nothing_at_all_is_refused(peer: ServedPeer) -> None:
    failure = await failure_of(publish(peer, 1, 0))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert list(failure.violations) == ["batches[0].metrics"]


@pytest.mark.twin_only
async def test_a_cluster_below_level_3_gets_none(peer: ServedPeer) -> None:
    """A retry at a peer of the older version, which does not know the field, is the same batch."""
    peer.node.set_status(feature_level=2)
    await publish(peer, 1, 1, ("keypress", 5))
    assert (await publish(peer, 1, 1)).status == metrics_pb2.BATCH_STATUS_DUPLICATE
    alone = await publish(peer, 2, 0, ("keypress", 5))
    assert alone.status == metrics_pb2.BATCH_STATUS_ACCEPTED
    assert (await window(peer)).omitted_total == 0
