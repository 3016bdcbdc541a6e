"""A machine for tests of metrics and alerts: batches by hand, as ingress would pack them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gaia.alert.v1 import alert_pb2
from gaia.command.v1 import command_pb2, query_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.state.feature_levels import FEATURE_LEVEL
from gaia_grpc.state.metrics import MetricsTable
from gaia_grpc.state.packing import pack_batch
from tests.state.harness import Log

Sample = tuple[str, float, int]
"""(metric_type, value, event_time_ms)."""
MAX_FUTURE_MS = 60_000
ROOM = "room-1"


def make_batch(
    samples: Iterable[Sample],
    *,
    sequence: int,
    sent_at_ms: int,
    student: str = "ana",
    app: str = "reading",
    **fields: Any,
) -> metrics_pb2.MetricBatch:
    """A batch of one source of the student and app, where nothing else is said."""
    fields.setdefault("source_id", f"{student}-{app}")
    fields.setdefault("source_epoch", 1)
    fields.setdefault("classroom_id", ROOM)
    return metrics_pb2.MetricBatch(
        sequence=sequence,
        sent_at_ms=sent_at_ms,
        student_id=student,
        app_name=app,
        metrics=[
            metrics_pb2.Metric(metric_type=kind, value=value, event_time_ms=time_ms)
            for kind, value, time_ms in samples
        ],
        **fields,
    )


class Lesson(Log):
    """Publishes batches with fresh sequences and reads windows and alerts."""

    def __init__(self, *settings: tuple[str, str], level: int = FEATURE_LEVEL) -> None:
        super().__init__(*settings, level=level)
        self._sequence = 0

    def metrics_table(self) -> MetricsTable:
        """The table inside, for what no answer shows."""
        found = [table for table in self.machine._tables if isinstance(table, MetricsTable)]
        return found[0]

    def send(self, *batches: metrics_pb2.MetricBatch) -> list[metrics_pb2.BatchResult]:
        """Packs and applies batches as one command."""
        packed = [pack_batch(batch, max_future_ms=MAX_FUTURE_MS).batch for batch in batches]
        body = command_pb2.PublishMetrics(batches=packed)
        return list(self.do(publish_metrics=body).publish.results)

    def batch(self, samples: Iterable[Sample], **fields: Any) -> metrics_pb2.MetricBatch:
        """A batch sent now with the next sequence."""
        self._sequence += 1
        fields.setdefault("sequence", self._sequence)
        fields.setdefault("sent_at_ms", self.now_ms)
        return make_batch(samples, **fields)

    def publish(self, samples: Iterable[Sample], **fields: Any) -> metrics_pb2.BatchResult:
        """Sends one batch now."""
        return self.send(self.batch(samples, **fields))[0]

    def omit(self, *marks: tuple[str, int, int], **fields: Any) -> metrics_pb2.BatchResult:
        """Sends gap marks of (type, count, event_time_ms), with `samples` where there are any."""
        batch = self.batch(fields.pop("samples", ()), **fields)
        for metric_type, count, time_ms in marks:
            batch.omissions.add(metric_type=metric_type, count=count, event_time_ms=time_ms)
        return self.send(batch)[0]

    def errors(self, *ages_s: float, **fields: Any) -> metrics_pb2.BatchResult:
        """Errors of these ages in seconds, in this order."""
        now_ms = fields.get("sent_at_ms", self.now_ms)
        samples = [("error", 1.0, now_ms - round(age_s * 1_000)) for age_s in ages_s]
        return self.publish(samples, **fields)

    def window(
        self, student: str = "ana", app: str = "reading", **fields: Any
    ) -> metrics_pb2.Aggregate:
        """The student's window."""
        answer = self.ask(get_aggregate={"student_id": student, "app_name": app, **fields})
        return answer.get_aggregate.aggregate

    def windows(self, room: str = ROOM, **fields: Any) -> list[metrics_pb2.Aggregate]:
        """One page of a classroom."""
        answer = self.ask(list_aggregates={"classroom_id": room, **fields})
        return list(answer.list_aggregates.aggregates)

    def alerts(self, **filters: Any) -> list[alert_pb2.Alert]:
        """Alerts, newest first."""
        return list(self.ask(list_alerts={"filter": filters}).list_alerts.alerts)

    def events(self, after: int = 0, limit: int = 0, **filters: Any) -> query_pb2.AlertEventsResult:
        """Alert events after a sequence."""
        query = {"filter": filters, "after_sequence": after, "limit": limit}
        return self.ask(alert_events=query).alert_events

    def changes(self, **filters: Any) -> list[str]:
        """What happened to alerts, in order."""
        prefix = "ALERT_CHANGE_"
        return [
            alert_pb2.AlertChange.Name(event.change).removeprefix(prefix)
            for event in self.events(limit=1_000, **filters).events
        ]


def metric(window: metrics_pb2.Aggregate, metric_type: str) -> metrics_pb2.MetricAggregate:
    """One type of a window."""
    found = [entry for entry in window.metrics if entry.metric_type == metric_type]
    assert len(found) == 1, window
    return found[0]


def counts(window: metrics_pb2.Aggregate) -> dict[str, int]:
    """Count by type."""
    return {entry.metric_type: entry.count for entry in window.metrics}
