"""Backups of a running cluster, and the two ways back: a new cluster, and after a lost majority."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from gaia.alert.v1 import alert_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.cli.main import main
from gaia_grpc.client import Client
from gaia_grpc.errors import UnavailableError
from gaia_grpc.testing import Cluster
from gaia_grpc.testing.plugin import MakeCluster

ERRORS = 5


async def gaia(*arguments: str) -> int:
    """A command as the shell runs it, beside the clients of this test."""
    return await asyncio.to_thread(main, arguments)


async def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    code = await gaia(*arguments, "--json")
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


async def teach(client: Client, name: str, tasks: int) -> None:
    """Something of every kind: a session with a claim, tasks, windows, an alert."""
    session = await client.sessions.register(f"worker-{name}", provider="test")
    await client.tasks.enqueue_batch([f"{name}-{number}" for number in range(tasks)])
    [claimed] = (await client.tasks.claim(session.session.session_id)).tasks
    await client.tasks.complete(claimed, b"done")
    app = client.metrics.buffer(student_id=f"ana-{name}", app_name="math", classroom_id="5b")
    for _ in range(ERRORS):
        app.record("error")
    await app.flush()


async def knowledge(client: Client) -> tuple[list[task_pb2.Task], list[alert_pb2.Alert], str]:
    """What a person would miss, in the order of its ids."""
    tasks = [task async for task in client.tasks.list()]
    alerts = [alert async for alert in client.alerts.list()]
    aggregate = (await client.metrics.aggregate("ana-before", "math")).aggregate
    sums = json.dumps([(each.metric_type, each.count, each.sum) for each in aggregate.metrics])
    return tasks, alerts, sums


async def test_a_backup_becomes_a_new_cluster_that_knows_the_same(
    gaia_cluster: MakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "school.backup"
    cluster = await asyncio.to_thread(gaia_cluster, 3)
    async with cluster.client() as client:
        await teach(client, "before", 40)
        before = await knowledge(client)
        made = await told(capsys, "backup", str(file), "--cluster", ",".join(cluster.addresses))
        await teach(client, "after", 3)
    old_id = cluster.status(cluster.leader()).cluster_id
    assert made["clusterId"] == made["sourceClusterId"] == old_id
    assert await gaia("restore", str(file), "--check") == 0
    async with Cluster(3, backup=file) as restored, restored.client() as client:
        tasks, alerts, sums = await knowledge(client)
        assert (len(tasks), sums) == (40, before[2])
        assert [task.SerializeToString() for task in tasks] == [
            task.SerializeToString() for task in before[0]
        ]
        assert [alert.alert_id for alert in alerts] == [alert.alert_id for alert in before[1]]
        assert restored.status("n3").cluster_id not in ("", old_id)
        assert {member.voter for member in restored.status("n2").peers} == {True}
        # The claim tokens go on where they were: an old one can't be taken for a new one.
        session = await client.sessions.register("worker-new", provider="test")
        [claimed] = (await client.tasks.claim(session.session.session_id)).tasks
        assert claimed.claim_token > max(task.claim_token for task in tasks)
        await restored.aio.assert_equal_logs_and_hashes()


async def test_a_cluster_that_lost_its_majority_refuses_and_comes_back_from_one_directory(
    gaia_cluster: MakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "left.backup"
    cluster = await asyncio.to_thread(gaia_cluster, 3)
    async with cluster.client() as client:
        await teach(client, "before", 20)
        await cluster.aio.wait_applied_equal()
        before = await knowledge(client)
        survivor = cluster.follower()
        lost = [name for name in cluster.node_ids if name != survivor]
        await cluster.aio.kill(*lost)
        for name in lost:
            cluster.wipe(name)
    async with Client.connect(cluster.address(survivor)) as client:
        with pytest.raises(UnavailableError):
            await client.tasks.enqueue("too-late", timeout=1.0)
        with pytest.raises(UnavailableError):
            await client.tasks.get(before[0][0].task_id, timeout=1.0)
        assert await gaia("backup", str(file), "--cluster", cluster.address(survivor)) == 1
    data_dir = cluster.peer(survivor).data_dir
    assert await gaia("backup", str(file), "--data-dir", str(data_dir)) == 1, "it runs"
    await cluster.aio.terminate(survivor)
    made = await told(capsys, "backup", str(file), "--data-dir", str(data_dir))
    assert int(made["index"]) > 0
    async with Cluster(3, backup=file) as restored, restored.client() as client:
        tasks, alerts, sums = await knowledge(client)
        assert [task.task_id for task in tasks] == [task.task_id for task in before[0]]
        assert [alert.alert_id for alert in alerts] == [alert.alert_id for alert in before[1]]
        assert sums == before[2]
        assert (await client.tasks.enqueue("on-we-go")).task.task_id


async def test_a_damaged_backup_is_refused(
    gaia_cluster: MakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "b"
    cluster = await asyncio.to_thread(gaia_cluster, 1)
    async with cluster.client() as client:
        await client.tasks.enqueue("grade")
        await told(capsys, "backup", str(file), "--cluster", cluster.address("n1"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert await gaia("restore", str(file), "--data-dir", str(tmp_path / "new")) == 1
    assert "can't be trusted" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


async def test_an_existing_file_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "b"
    file.write_text("precious")
    assert await gaia("backup", str(file), "--cluster", "127.0.0.1:1") == 2
    assert "--force" in capsys.readouterr().err
    assert file.read_text() == "precious"
