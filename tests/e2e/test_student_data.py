"""One student's records, deleted on real peers: gone from the state, and then from every disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from gaia.alert.v1 import alert_pb2
from gaia.cluster.v1 import cluster_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc.client import Client
from gaia_grpc.errors import NotFoundError
from gaia_grpc.testing import Cluster
from gaia_grpc.testing.plugin import MakeCluster
from tests.e2e.support import eventually

ANA = "pupil-7f3a91"
BEN = "pupil-2c58d4"
SNAPSHOT_TIMEOUT_S = 20


def files_with(directory: Path, student_id: str) -> list[str]:
    """Files of a peer that hold a student's id anywhere."""
    needle = student_id.encode()
    return [
        str(each.relative_to(directory))
        for each in sorted(directory.rglob("*"))
        if each.is_file() and needle in each.read_bytes()
    ]


async def take_snapshots(client: Client, cluster: Cluster) -> None:
    for address in cluster.addresses:
        stub = client.peer(address).cluster
        await stub.TakeSnapshot(cluster_pb2.TakeSnapshotRequest(), timeout=SNAPSHOT_TIMEOUT_S)


async def struggle(client: Client, student_id: str, first: int, batches: int) -> None:
    """Errors and keys of one student: windows, an alert, its events."""
    for sequence in range(first, first + batches):
        batch = metrics_pb2.MetricBatch(
            source_id=f"tablet-{student_id == ANA}",
            source_epoch=1,
            sequence=sequence,
            classroom_id="5b",
            student_id=student_id,
            app_name="math",
            metrics=[
                metrics_pb2.Metric(metric_type=metric_type, value=1)
                for metric_type in ("error", "keypress")
                for _ in range(5)
            ],
        )
        await client.metrics.publish([batch])


async def test_a_deleted_student_is_in_no_file_of_any_peer_after_a_snapshot(
    gaia_cluster: MakeCluster,
) -> None:
    """In the log, in a snapshot and in freed pages before; a slow follower is sent the snapshot."""
    cluster = await asyncio.to_thread(gaia_cluster, 3)
    async with cluster.client() as client:
        await struggle(client, ANA, 1, 200)
        await struggle(client, BEN, 1, 20)
        await client.classrooms.put("5b", student_ids=[ANA, BEN], request_id="r-put")
        (alert,) = [alert async for alert in client.alerts.list(student_id=ANA)]
        await client.alerts.acknowledge(alert.alert_id, teacher_id="kim", request_id="r-ack")
        await take_snapshots(client, cluster)
        await struggle(client, ANA, 201, 100)
        directories = [cluster.peer(name).data_dir for name in cluster.node_ids]
        holding = [files_with(directory, ANA) for directory in directories]
        assert all(len(files) >= 2 for files in holding), holding

        slow = await asyncio.to_thread(cluster.follower)
        await asyncio.to_thread(cluster.pause, slow)
        answer = await client.classrooms.delete_student_data(ANA)
        assert (answer.removed_windows, answer.removed_alerts) == (1, 1)
        assert answer.removed_alert_events >= 2
        assert answer.removed_memberships == 1
        await struggle(client, BEN, 21, 5)
        await asyncio.to_thread(cluster.resume, slow)
        await asyncio.to_thread(cluster.wait_applied_equal)
        await take_snapshots(client, cluster)
        for directory in directories:
            await eventually_gone(directory)

        with pytest.raises(NotFoundError):
            await client.metrics.aggregate(ANA, "math")
        assert [each.student_id async for each in client.alerts.list()] == [BEN]
        assert (await client.classrooms.get("5b")).classroom.student_ids == [BEN]
        assert (await client.metrics.aggregate(BEN, "math")).aggregate.accepted_total == 250

        # What is on the disks is whole: peers come back with it and agree.
        await asyncio.to_thread(cluster.kill, slow)
        await asyncio.to_thread(cluster.restart, slow)
        await struggle(client, ANA, 301, 1)
        assert (await client.metrics.aggregate(ANA, "math")).aggregate.accepted_total == 10
        await asyncio.to_thread(cluster.assert_equal_logs_and_hashes)


async def test_a_deleted_student_has_no_past_on_any_disk(gaia_cluster: MakeCluster) -> None:
    """Past windows, what the detector saw, and what a late batch adds to them, while every peer is
    making a snapshot."""
    cluster = await asyncio.to_thread(gaia_cluster, 3, settings={"metrics.window": "1s"})
    async with cluster.client() as client:
        sequence = 0

        async def past_has_all() -> bool:
            return len([each async for each in client.metrics.history(ANA, "math")]) == sequence

        for sequence in range(1, 5):
            await struggle(client, ANA, sequence, 1)
            await struggle(client, BEN, sequence, 1)
            await eventually(past_has_all, "the window of the last batch is over")
        async with asyncio.TaskGroup() as group:
            group.create_task(take_snapshots(client, cluster))
            deleting = group.create_task(client.classrooms.delete_student_data(ANA))
        assert deleting.result().removed_history >= 1
        assert not [window async for window in client.metrics.history(ANA, "math")]
        assert [window async for window in client.metrics.history(BEN, "math")]
        await asyncio.to_thread(cluster.wait_applied_equal)
        await take_snapshots(client, cluster)
        for name in cluster.node_ids:
            await eventually_gone(cluster.peer(name).data_dir)
        await asyncio.to_thread(cluster.assert_equal_logs_and_hashes)


async def eventually_gone(data_dir: Path) -> None:
    async def gone() -> bool:
        return not files_with(data_dir, ANA)

    await eventually(gone, f"{ANA} is gone from {data_dir}", timeout=20)


async def test_subscribers_go_on_over_a_deletion_at_any_peer(gaia_cluster: MakeCluster) -> None:
    """A cursor of before it finds every event of the others, and of the student only the end."""
    cluster = await asyncio.to_thread(gaia_cluster, 3)
    async with cluster.client() as client:
        await struggle(client, ANA, 1, 1)
        await struggle(client, BEN, 1, 1)
        await client.classrooms.delete_student_data(ANA)
        await struggle(client, ANA, 2, 1)
        seen = []
        for address in cluster.addresses:
            stream = client.peer(address).alerts.SubscribeAlerts(
                alert_pb2.SubscribeAlertsRequest(after_sequence=0), timeout=SNAPSHOT_TIMEOUT_S
            )
            events: list[tuple[int, int, str]] = []
            async for message in stream:
                if message.HasField("event"):
                    event = message.event
                    events.append((event.sequence, event.change, event.alert.student_id))
                if message.through_sequence >= 4:
                    break
            stream.cancel()
            seen.append(events)
        assert seen[0] == [
            (2, alert_pb2.ALERT_CHANGE_OPENED, BEN),
            (3, alert_pb2.ALERT_CHANGE_ERASED, ""),
            (4, alert_pb2.ALERT_CHANGE_OPENED, ANA),
        ]
        assert seen[1] == seen[2] == seen[0]
