"""A sender of metrics that listens to nobody, as a process: `python -m ... ADDRESS SECONDS CALLS`.

Each of its calls is repeated at once where it is refused, without the pause that the answer asks
for. Prints what it offered and what was acknowledged, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import grpc
from gaia.metrics.v1 import metrics_pb2

BATCHES_PER_CALL = 20
METRICS_PER_BATCH = 500
STUDENTS = 500
TYPES = ("keypress", "response_time", "accuracy", "correct")


class Flood:
    """Calls in a loop, many at a time."""

    def __init__(self, address: str, seconds: float) -> None:
        self.counts = {"offered": 0, "acknowledged": 0, "refused": 0, "failed": 0}
        self._address = address
        self._until_s = time.monotonic() + seconds
        self._sources = 0
        self._metrics = [
            metrics_pb2.Metric(metric_type=TYPES[place % 4], value=float(place))
            for place in range(METRICS_PER_BATCH)
        ]

    def _request(self) -> bytes:
        request = metrics_pb2.PublishMetricsRequest()
        for _ in range(BATCHES_PER_CALL):
            self._sources += 1
            student = f"flood-{self._sources % STUDENTS}"
            request.batches.add(
                source_id=f"{student}.{self._address}",
                source_epoch=1,
                sequence=self._sources // STUDENTS + 1,
                classroom_id="flooded",
                student_id=student,
                app_name="math",
                metrics=self._metrics,
            )
        return request.SerializeToString()

    async def _caller(self, publish: Any) -> None:
        size = BATCHES_PER_CALL * METRICS_PER_BATCH
        request = self._request()
        while time.monotonic() < self._until_s:
            self.counts["offered"] += size
            try:
                await publish(request, timeout=10.0)
            except grpc.aio.AioRpcError as error:
                refused = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                self.counts["refused" if refused else "failed"] += size
            else:
                self.counts["acknowledged"] += size
                request = self._request()

    async def run(self, calls: int) -> None:
        """Until the time is over."""
        async with grpc.aio.insecure_channel(self._address) as channel:
            publish: Any = channel.unary_unary("/gaia.metrics.v1.MetricsService/PublishMetrics")
            async with asyncio.TaskGroup() as group:
                for _ in range(calls):
                    group.create_task(self._caller(publish))


if __name__ == "__main__":
    flood = Flood(sys.argv[1], float(sys.argv[2]))
    asyncio.run(flood.run(int(sys.argv[3])))
    sys.stdout.write(json.dumps(flood.counts))
