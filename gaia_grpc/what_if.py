"""What other settings would have made of a classroom's past: alerts computed anew, in this process.

The rows that the detector saw (MetricsService/ListDetectorInputs, in steps of 5 s) go as metrics
into a state machine of their own, once with the settings as they are and once with other ones. Both
see the same rows, so what differs comes from the settings: the rows are coarser than the metrics
were, and neither side says to the second what happened. No peer is asked for anything but the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from gaia.alert.v1 import alert_pb2
from gaia.cluster.v1 import cluster_pb2
from gaia.command.v1 import command_pb2, query_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.errors import InvalidArgumentError
from gaia_grpc.raft.types import EntryKind
from gaia_grpc.state.feature_levels import FEATURE_LEVEL
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.packing import MICRO, pack_batch
from gaia_grpc.state.stamp import stamp

STEP_MS: Final = 5_000
LOG_STEPS: Final = 64.0
SAME_WITHIN_MS: Final = 300_000
"""Two alerts of a student in an app that began no further apart are the same one."""
TIMELINE: Final = "what-if"
MOST_EACH_STEP: Final = 1_000
"""Metrics of one channel in one step."""
QUIET_MS: Final = 3_600_000
"""After the last row, so that everything ends."""

Change: TypeAlias = tuple[str, str]
"""(setting, value)."""
_TYPES: Final = {"idle": "pause"}
"""Channels whose metrics have another name."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One alert that is not the same on both sides; None where there is none."""

    before: alert_pb2.Alert | None
    after: alert_pb2.Alert | None

    @property
    def what(self) -> str:
        """added, gone, or severity."""
        if self.before is None:
            return "added"
        return "gone" if self.after is None else "severity"


def differences(
    windows: Sequence[metrics_pb2.DetectorInputs],
    settings: Sequence[Change],
    changes: Sequence[Change],
) -> tuple[int, int, list[Difference]]:
    """Alerts with the settings as they are, alerts with the changes, and what differs, by time.

    Raises `InvalidArgumentError` where a change is none of the settings.
    """
    known = {name for name, _ in settings}
    for name, _ in changes:
        if name not in known:
            raise InvalidArgumentError(f"no setting {name!r}")
    before = alerts_of(windows, settings)
    changed = dict(changes)
    after = alerts_of(windows, [(name, changed.get(name, value)) for name, value in settings])
    return len(before), len(after), compare(before, after)


def alerts_of(
    windows: Sequence[metrics_pb2.DetectorInputs], settings: Sequence[Change]
) -> list[alert_pb2.Alert]:
    """The alerts that these rows raise, each as severe as it ever was, in the order of their
    begin. Raises `InvalidArgumentError` for a setting that is refused."""
    run = _Run(settings)
    steps: dict[int, dict[tuple[str, str], list[metrics_pb2.Metric]]] = {}
    for window in windows:
        for channel in window.channels:
            for step, count, total in zip(channel.steps, channel.counts, channel.sums, strict=True):
                key = (window.student_id, window.app_name)
                steps.setdefault(step, {}).setdefault(key, []).extend(
                    _metrics(channel.channel, step, count, total)
                )
    for step in sorted(steps):
        for key in sorted(steps[step]):
            run.publish(key, steps[step][key], (step + 1) * STEP_MS)
    if steps:
        last_ms = (max(steps) + 1) * STEP_MS + QUIET_MS
        tick = metrics_pb2.Metric(metric_type="end", value=1, event_time_ms=last_ms)
        run.publish(("end", "end"), [tick], last_ms)
    return run.alerts()


def compare(
    before: Sequence[alert_pb2.Alert], after: Sequence[alert_pb2.Alert]
) -> list[Difference]:
    """What is added, gone, or of another severity, in the order of time."""
    left = list(after)
    found: list[Difference] = []
    for alert in before:
        twin = next((each for each in left if _same(alert, each)), None)
        if twin is None:
            found.append(Difference(alert, None))
            continue
        left.remove(twin)
        if twin.severity != alert.severity:
            found.append(Difference(alert, twin))
    found += [Difference(None, alert) for alert in left]
    return sorted(found, key=_begin_ms)


def _begin_ms(difference: Difference) -> int:
    alert = difference.before or difference.after
    return alert.detected_at_ms if alert is not None else 0


def _same(one: alert_pb2.Alert, other: alert_pb2.Alert) -> bool:
    return (one.student_id, one.app_name) == (other.student_id, other.app_name) and abs(
        one.detected_at_ms - other.detected_at_ms
    ) <= SAME_WITHIN_MS


def _metrics(channel: str, step: int, count: int, total: int) -> Iterable[metrics_pb2.Metric]:
    """So many metrics with this sum, spread over the step."""
    count = min(count, MOST_EACH_STEP)
    value = total / count / MICRO
    if channel == "response_time":
        value = 2.0 ** (total / count / LOG_STEPS) / MICRO
    for at in range(count):
        yield metrics_pb2.Metric(
            metric_type=_TYPES.get(channel, channel),
            value=value,
            event_time_ms=step * STEP_MS + (at + 1) * STEP_MS // count,
        )


class _Run:
    """A state machine that nobody else sees."""

    def __init__(self, settings: Sequence[Change]) -> None:
        self._machine = StateMachine()
        self._index = 0
        self._sequences: dict[tuple[str, str], int] = {}
        founding = command_pb2.FoundCluster(
            cluster_id=TIMELINE,
            feature_level=FEATURE_LEVEL,
            settings=[
                cluster_pb2.SettingChange(name=name, value=value) for name, value in settings
            ],
        )
        result = self._apply(command_pb2.Command(found_cluster=founding))
        if result.HasField("refusal"):
            raise InvalidArgumentError(result.refusal.message)

    def publish(
        self, key: tuple[str, str], metrics: Sequence[metrics_pb2.Metric], sent_at_ms: int
    ) -> None:
        """One batch on a timeline of its own."""
        sequence = self._sequences[key] = self._sequences.get(key, 0) + 1
        batch = metrics_pb2.MetricBatch(
            source_id="\n".join(key),
            source_epoch=1,
            sequence=sequence,
            timeline_id=TIMELINE,
            student_id=key[0],
            app_name=key[1],
            sent_at_ms=sent_at_ms,
            metrics=metrics,
        )
        packed = pack_batch(batch, max_future_ms=0).batch
        self._apply(
            command_pb2.Command(publish_metrics=command_pb2.PublishMetrics(batches=[packed]))
        )

    def alerts(self) -> list[alert_pb2.Alert]:
        """All alerts, in the order of their begin, each with its highest severity."""
        found: dict[str, alert_pb2.Alert] = {}
        after = 0
        while True:
            wanted = query_pb2.AlertEventsQuery(
                filter=alert_pb2.AlertFilter(timeline_id=TIMELINE),
                after_sequence=after,
                limit=1_000,
            )
            query = query_pb2.Query(alert_events=wanted)
            data = self._machine.query(query.SerializeToString(), 0)
            page = query_pb2.QueryResult.FromString(data).alert_events
            for event in page.events:
                known = found.get(event.alert.alert_id)
                if known is None or event.alert.severity > known.severity:
                    found[event.alert.alert_id] = event.alert
            if page.through_sequence <= after or not page.events:
                return sorted(found.values(), key=lambda alert: alert.detected_at_ms)
            after = page.through_sequence

    def _apply(self, command: command_pb2.Command) -> command_pb2.CommandResult:
        self._index += 1
        data = stamp(command.SerializeToString(), 1, 1)
        return command_pb2.CommandResult.FromString(
            self._machine.apply(self._index, EntryKind.COMMAND, data)
        )
