"""T2 through the service: the log as a stream of metrics on its own timeline, at two speeds, and
offline through the state machine alone. All three must give the same alert events, to the bit.

Left out of the comparison is what is another one's by its nature: ids, sequences, the index of the
log entry, the timeline's name and the time of the record.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from gaia.alert.v1 import alert_pb2
from gaia.command.v1 import command_pb2, query_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.classroom.recordings import Recording
from gaia_grpc.classroom.replay import Replayer, Slice, cut
from gaia_grpc.client import Client
from gaia_grpc.errors import InvalidArgumentError
from gaia_grpc.raft.types import EntryKind
from gaia_grpc.state.feature_levels import FEATURE_LEVEL
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.packing import pack_batch
from gaia_grpc.state.settings import Settings
from gaia_grpc.state.stamp import stamp
from gaia_grpc.testing import Cluster

SPEEDS = (0.0, 20_000.0)
"""Log seconds in a second; 0 does not wait at all."""
BEGIN_MS = 1_700_000_000_000
CALL_MS = 1_000
"""Log time between two calls, offline: it decides nothing on a timeline."""
PAGE = 1_000
EVENT_TIMEOUT_S = 30.0


class Told(NamedTuple):
    """What one event says."""

    change: int
    pushed: bool
    alert: bytes


class Run(NamedTuple):
    """One way through."""

    name: str
    events: list[Told]
    alerts: list[alert_pb2.Alert]
    wall_s: float


def told(event: alert_pb2.AlertEvent) -> Told:
    """An event without what is another one's by its nature."""
    alert = alert_pb2.Alert()
    alert.CopyFrom(event.alert)
    alert.ClearField("alert_id")
    alert.ClearField("timeline_id")
    alert.ClearField("classroom_id")
    alert.ClearField("last_sequence")
    alert.ClearField("create_time")
    return Told(event.change, event.pushed, alert.SerializeToString(deterministic=True))


class OfflineMetrics:
    """Publishes into a state machine in this process, as a leader's log would."""

    def __init__(self) -> None:
        self._machine = StateMachine()
        self._now_ms = BEGIN_MS
        self._max_future_ms = Settings().milliseconds("metrics.max_future")
        founding = command_pb2.FoundCluster(cluster_id="offline", feature_level=FEATURE_LEVEL)
        self._apply(command_pb2.Command(found_cluster=founding))

    def _apply(self, command: command_pb2.Command) -> command_pb2.CommandResult:
        data = stamp(command.SerializeToString(), self._now_ms, self._now_ms)
        index = self._machine.applied_index + 1
        result = self._machine.apply(index, EntryKind.COMMAND, data)
        return command_pb2.CommandResult.FromString(result)

    async def publish(
        self, batches: Sequence[metrics_pb2.MetricBatch]
    ) -> metrics_pb2.PublishMetricsResponse:
        """One command."""
        self._now_ms += CALL_MS
        body = command_pb2.PublishMetrics(
            batches=[
                pack_batch(batch, max_future_ms=self._max_future_ms, with_omissions=True).batch
                for batch in batches
            ]
        )
        result = self._apply(command_pb2.Command(publish_metrics=body))
        if result.WhichOneof("body") != "publish":
            raise InvalidArgumentError("the state machine refused the batches")
        return metrics_pb2.PublishMetricsResponse(results=result.publish.results)

    def events(self, timeline_id: str) -> list[alert_pb2.AlertEvent]:
        """All alert events of a timeline."""
        found: list[alert_pb2.AlertEvent] = []
        after = 0
        while True:
            query = query_pb2.Query()
            query.alert_events.filter.timeline_id = timeline_id
            query.alert_events.after_sequence = after
            query.alert_events.limit = PAGE
            data = self._machine.query(query.SerializeToString(), self._now_ms)
            answer = query_pb2.QueryResult.FromString(data).alert_events
            found += answer.events
            if not answer.events or answer.through_sequence <= after:
                return found
            after = answer.through_sequence


class Offline:
    """What a replayer needs of a client."""

    def __init__(self) -> None:
        self.metrics = OfflineMetrics()


async def offline(slices: Sequence[Slice]) -> Run:
    """Through the state machine alone."""
    sink = Offline()
    began_s = time.monotonic()
    await _replayer(sink, "offline", 0.0).run(slices)
    events = sink.metrics.events("offline")
    newest = {event.alert.alert_id: event.alert for event in events}
    return Run(
        "offline",
        [told(event) for event in events],
        list(newest.values()),
        time.monotonic() - began_s,
    )


def _replayer(sink: Offline | Client, name: str, speed: float) -> Replayer:
    return Replayer(
        sink, timeline_id=name, classroom_id=name, source_id=name, source_epoch=1, speed=speed
    )


async def through_cluster(client: Client, slices: Sequence[Slice], speed: float, count: int) -> Run:
    """Through running peers; `count` events are waited for."""
    name = f"speed-{speed:g}"
    began_s = time.monotonic()
    await _replayer(client, name, speed).run(slices)
    wall_s = time.monotonic() - began_s
    events: list[alert_pb2.AlertEvent] = []
    async with client.alerts.listen(timeline_id=name, after_sequence=0) as listener:
        while len(events) < count:
            event = await listener.next(timeout=EVENT_TIMEOUT_S)
            if event is None:
                break
            events.append(event)
    alerts = [each async for each in client.alerts.list(timeline_id=name)]
    return Run(name, [told(event) for event in events], alerts, wall_s)


async def compare(recording: Recording) -> tuple[Run, list[Run]]:
    """Offline, and through three peers at each speed."""
    slices = list(cut(recording.metrics))
    reference = await offline(slices)
    runs = []
    settings = {"alert.retained_events": "1000000"}
    async with Cluster(3, settings=settings) as cluster:
        for speed in SPEEDS:
            async with Client.connect(cluster.addresses, timeout=60.0) as client:
                runs.append(await through_cluster(client, slices, speed, len(reference.events)))
    return reference, runs
