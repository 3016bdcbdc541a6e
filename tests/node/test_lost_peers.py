"""A member that does not answer is an operational alert, until it is back."""

from __future__ import annotations

from pathlib import Path

from gaia.alert.v1 import alert_pb2
from gaia.command.v1 import query_pb2

from gaia_grpc.node.api import ReadConsistency
from tests.support.local_cluster import LocalCluster, change_setting, engine_of, running, until


async def troubles(cluster: LocalCluster, name: str) -> list[alert_pb2.Alert]:
    wanted = alert_pb2.AlertFilter(kind=alert_pb2.ALERT_KIND_OPERATIONAL)
    query = query_pb2.Query(list_alerts=alert_pb2.ListAlertsRequest(filter=wanted))
    driver = cluster.drivers[name]
    local = ReadConsistency.LOCAL
    data = await driver.read(query.SerializeToString(), consistency=local, timeout_s=5.0)
    return list(query_pb2.QueryResult.FromString(data).list_alerts.alerts)


async def test_a_member_that_is_gone_is_told_once_and_taken_back(tmp_path: Path) -> None:
    async with running(LocalCluster(tmp_path)) as cluster:
        leader = await cluster.leader()
        setting = change_setting("alert.peer_lost_after", "1s", "r1")
        await cluster.drivers[leader].propose(setting, timeout_s=5.0)
        lost = next(name for name in cluster.names if name != leader)
        await cluster.crash(lost)
        machine = engine_of(cluster.drivers[leader]).applier.machine
        await until(lambda: machine.lost_peers() == (lost,), 15)
        assert [(each.subject, each.state) for each in await troubles(cluster, leader)] == [
            (lost, alert_pb2.ALERT_STATE_OPEN)
        ]
        await cluster.start(lost)
        await until(lambda: not machine.lost_peers(), 15)
        assert [(each.subject, each.state) for each in await troubles(cluster, leader)] == [
            (lost, alert_pb2.ALERT_STATE_RESOLVED)
        ]
