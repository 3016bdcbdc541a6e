"""GetHistory over the real state machine."""

from __future__ import annotations

from typing import Any

import grpc
from gaia.common.v1 import common_pb2
from gaia.metrics.v1 import metrics_pb2

from tests.support.served_peer import TIMEOUT_S, ServedPeer, failure_of

WINDOW_MS = 300_000
START_MS = 1_700_000_000_000 // WINDOW_MS * WINDOW_MS


async def replay(peer: ServedPeer, windows: int) -> None:
    """A recorded lesson: one error in each window, and a last batch that ends them all."""
    batches = []
    for number in range(windows + 1):
        sent_ms = START_MS + number * WINDOW_MS + 1
        batches.append(
            metrics_pb2.MetricBatch(
                source_id="log",
                source_epoch=1,
                sequence=number + 1,
                sent_at_ms=sent_ms,
                timeline_id="lesson-1",
                student_id="ada",
                app_name="math",
                metrics=[metrics_pb2.Metric(metric_type="error", value=number + 1)],
            )
        )
    request = metrics_pb2.PublishMetricsRequest(batches=batches)
    response = await peer.metrics.PublishMetrics(request, timeout=TIMEOUT_S)
    assert [result.accepted_count for result in response.results] == [1] * (windows + 1)


def asked(**fields: Any) -> metrics_pb2.GetHistoryRequest:
    known = {"student_id": "ada", "app_name": "math", "timeline_id": "lesson-1", **fields}
    return metrics_pb2.GetHistoryRequest(**known)


async def test_past_windows_come_oldest_first_page_by_page(peer: ServedPeer) -> None:
    """More than one read of the state holds, so that a page is put together from several."""
    await replay(peer, 50)
    sums: list[float] = []
    request = asked(page_size=30)
    sizes = []
    while True:
        page = await peer.metrics.GetHistory(request, timeout=TIMEOUT_S)
        sizes.append(len(page.windows))
        sums += [window.aggregate.metrics[0].sum for window in page.windows]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert sums == list(range(1, 51))
    assert sizes == [30, 20]
    some = asked(start_ms=START_MS + WINDOW_MS, end_ms=START_MS + 3 * WINDOW_MS)
    local = common_pb2.CONSISTENCY_LOCAL
    some.consistency = local
    page = await peer.metrics.GetHistory(some, timeout=TIMEOUT_S)
    assert [window.aggregate.metrics[0].sum for window in page.windows] == [2, 3]
    first = page.windows[0]
    assert first.aggregate.window_start_ms == START_MS + WINDOW_MS
    assert first.close_time.ToMilliseconds() == START_MS + 3 * WINDOW_MS
    assert first.aggregate.metrics[0].rate_per_second == 1 / 300


async def test_a_student_without_a_past_has_no_windows(peer: ServedPeer) -> None:
    page = await peer.metrics.GetHistory(asked(student_id="nobody"), timeout=TIMEOUT_S)
    assert not page.windows
    assert not page.next_page_token


async def test_a_question_that_is_not_well_formed_is_refused(peer: ServedPeer) -> None:
    for bad in (
        asked(student_id=""),
        asked(app_name=""),
        asked(start_ms=-1),
        asked(page_size=1_001),
        asked(page_token="x"),
    ):
        failure = await failure_of(peer.metrics.GetHistory(bad, timeout=TIMEOUT_S))
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT, bad
