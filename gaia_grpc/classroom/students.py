"""Students: each runs three apps, whose metrics buffers publish through the SDK."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field

from gaia_grpc.classroom.lessons import APPS, ClassPlan, Measurement
from gaia_grpc.classroom.observe import Progress
from gaia_grpc.classroom.pace import ClassClock
from gaia_grpc.client import Client, MetricsBuffer, MetricsCounters

URGENT = "error"
FLUSH_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Desk:
    """What the students of one class share."""

    client: Client
    plan: ClassPlan
    clock: ClassClock
    progress: Progress
    run_id: str
    classroom_id: str
    timeline_id: str
    begin_ms: int
    """Event time of the begin of class, in milliseconds since 1970."""
    buffers: dict[tuple[str, str], MetricsBuffer] = field(default_factory=dict)
    publish_seconds: list[float] = field(default_factory=list)
    """From the record of an urgent metric to its acknowledgement."""
    error_times: dict[tuple[str, str], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """Time at which each injected error was recorded, by student and app."""

    def event_ms(self) -> int:
        """The clock of all buffers: class time as milliseconds since 1970."""
        return self.begin_ms + self.clock.now_ms()

    def buffer(self, student_id: str, app_name: str) -> MetricsBuffer:
        """The buffer of one student's app, made on first use."""
        key = (student_id, app_name)
        if key not in self.buffers:
            self.buffers[key] = self.client.metrics.buffer(
                student_id=student_id,
                app_name=app_name,
                classroom_id=self.classroom_id,
                source_id=f"{self.run_id}.{student_id}",
                timeline_id=self.timeline_id,
                clock=self.event_ms,
            )
        return self.buffers[key]

    def totals(self) -> MetricsCounters:
        """The counters of all buffers together."""
        total = MetricsCounters()
        for buffer in self.buffers.values():
            for name in MetricsCounters.__slots__:
                setattr(total, name, getattr(total, name) + getattr(buffer.counters, name))
        return total


async def attend(desk: Desk, student_id: str) -> None:
    """One student's class, from the first measurement to the last acknowledgement."""
    for measurement in desk.plan.of_student(student_id):
        async with desk.clock.hold(measurement.at_ms):
            await desk.clock.until(measurement.at_ms)
            await _measure(desk, measurement)
    await desk.clock.until(desk.plan.length_ms)
    for app_name in APPS:
        await desk.buffer(student_id, app_name).close(FLUSH_TIMEOUT_S)


async def _measure(desk: Desk, measurement: Measurement) -> None:
    buffer = desk.buffer(measurement.student_id, measurement.app_name)
    at_ms = desk.begin_ms + measurement.at_ms
    desk.progress.metrics_recorded += 1
    if measurement.metric_type != URGENT:
        buffer.record(measurement.metric_type, measurement.value, at_ms)
        return
    recorded_s = time.perf_counter()
    if measurement.injected:
        desk.error_times[measurement.student_id, measurement.app_name].append(recorded_s)
    buffer.record(measurement.metric_type, measurement.value, at_ms)
    await buffer.flush(FLUSH_TIMEOUT_S)
    desk.publish_seconds.append(time.perf_counter() - recorded_s)
