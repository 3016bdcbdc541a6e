"""The figures of a rolling window as the contract has them."""

from __future__ import annotations

from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.state.windows import Summary


def encode_summaries(summaries: tuple[Summary, ...], window_ms: int) -> bytes:
    """An Aggregate with nothing but its metrics: merging it costs less than building it again."""
    aggregate = metrics_pb2.Aggregate()
    counted = omitted = 0
    for summary in summaries:
        counted += summary.count
        omitted += summary.omitted_count
        if not summary.metric_type:
            continue
        aggregate.metrics.add(
            metric_type=summary.metric_type,
            count=summary.count,
            sum=summary.sum,
            mean=summary.mean,
            min=summary.min,
            max=summary.max,
            stddev=summary.stddev,
            p50=summary.p50,
            p95=summary.p95,
            p99=summary.p99,
            rate_per_second=summary.count * 1_000 / window_ms,
            first_time_ms=summary.first_time_ms,
            last_time_ms=summary.last_time_ms,
            omitted_count=summary.omitted_count,
            completeness=_completeness(summary.count, summary.omitted_count),
        )
    aggregate.completeness = _completeness(counted, omitted)
    return aggregate.SerializeToString()


def _completeness(count: int, omitted: int) -> float:
    return count / (count + omitted) if omitted else 1.0
