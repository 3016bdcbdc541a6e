"""SessionService over the real state machine."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from gaia.cluster.v1 import cluster_pb2
from gaia.common.v1 import common_pb2
from gaia.session.v1 import session_pb2

from gaia_grpc.errors import NotFoundError, OverloadedError, UnavailableError
from gaia_grpc.node.api import ReadConsistency
from gaia_grpc.services.heartbeats import HeartbeatCollector
from tests.support.fake_node import FakeNode
from tests.support.served_peer import (
    TIMEOUT_S,
    Serve,
    ServedPeer,
    eventually,
    failure_of,
    peer_config,
)


async def test_a_session_registers_with_defaults(peer: ServedPeer) -> None:
    request = session_pb2.RegisterSessionRequest(name="claude manager 1", provider="claude")
    response = await peer.sessions.RegisterSession(request, timeout=TIMEOUT_S)
    session = response.session
    assert (session.name, session.provider, session.specialty) == (
        "claude manager 1",
        "claude",
        "general",
    )
    assert session.tier == session_pb2.TIER_WORKER
    assert session.max_concurrent_tasks == 1
    assert session.health == session_pb2.HEALTH_HEALTHY
    assert response.heartbeat_interval_ms == 10_000
    status = peer.node.status()
    assert (response.term, response.applied_index) == (status.term, status.applied_index)


async def test_the_heartbeat_interval_follows_the_settings(peer: ServedPeer) -> None:
    await peer.register("first")
    change = cluster_pb2.SettingChange(name="session.heartbeat_interval", value="2s")
    await peer.cluster.UpdateSettings(
        cluster_pb2.UpdateSettingsRequest(changes=[change]), timeout=TIMEOUT_S
    )
    request = session_pb2.RegisterSessionRequest(name="second")
    response = await peer.sessions.RegisterSession(request, timeout=TIMEOUT_S)
    assert response.heartbeat_interval_ms == 2_000


async def test_labels_are_kept_in_the_order_of_their_keys(peer: ServedPeer) -> None:
    labels = [session_pb2.Label(key=key, value=key.upper()) for key in ("b", "a")]
    session = await peer.register(labels=labels)
    assert [(label.key, label.value) for label in session.labels] == [("a", "A"), ("b", "B")]


async def test_the_name_of_a_live_session_is_taken(peer: ServedPeer) -> None:
    await peer.register("one")
    failure = await failure_of(peer.register("one"))
    assert failure.code is grpc.StatusCode.ALREADY_EXISTS
    assert failure.domain == "gaia"
    assert failure.reason


async def test_a_repeated_request_id_is_the_same_registration(peer: ServedPeer) -> None:
    request = session_pb2.RegisterSessionRequest(name="one", request_id="r-1")
    metadata = (("gaia-client", "app-1"),)
    first = await peer.sessions.RegisterSession(request, timeout=TIMEOUT_S, metadata=metadata)
    again = await peer.sessions.RegisterSession(request, timeout=TIMEOUT_S, metadata=metadata)
    assert again.session == first.session
    command = peer.node.commands[-1]
    assert (command.client_id, command.request_id) == ("app-1", "r-1")
    assert not command.ingress_assigned
    assert len(command.request_digest) == 32
    other = session_pb2.RegisterSessionRequest(name="two", request_id="r-1")
    failure = await failure_of(
        peer.sessions.RegisterSession(other, timeout=TIMEOUT_S, metadata=metadata)
    )
    assert failure.code is grpc.StatusCode.ALREADY_EXISTS


async def test_request_ids_of_different_clients_are_different_requests(peer: ServedPeer) -> None:
    for number in (1, 2):
        request = session_pb2.RegisterSessionRequest(name=f"s{number}", request_id="r-1")
        metadata = (("gaia-client", f"app-{number}"),)
        await peer.sessions.RegisterSession(request, timeout=TIMEOUT_S, metadata=metadata)
    assert len(peer.node.commands) == 2


async def test_ingress_assigns_a_missing_request_id(peer: ServedPeer) -> None:
    await peer.register("one")
    command = peer.node.commands[-1]
    assert command.ingress_assigned
    assert len(command.request_id) == 36
    assert command.client_id == ""


async def test_a_client_id_that_is_no_id_is_refused(peer: ServedPeer) -> None:
    request = session_pb2.RegisterSessionRequest(name="one", request_id="r-1")
    failure = await failure_of(
        peer.sessions.RegisterSession(
            request, timeout=TIMEOUT_S, metadata=(("gaia-client", "no id"),)
        )
    )
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(failure.violations) == ["gaia-client"]


async def test_heartbeats_of_one_moment_are_one_entry(serve: Serve) -> None:
    async with serve(heartbeat_collect_ms=100) as peer:
        sessions = [await peer.register(f"s{number}") for number in range(5)]
        before = len(peer.node.commands)
        await peer.node.let_pass(16_000)
        requests = [
            session_pb2.HeartbeatRequest(session_id=session.session_id, incarnation=1)
            for session in sessions
        ]
        unknown = session_pb2.HeartbeatRequest(session_id="nobody")
        calls = [peer.sessions.Heartbeat(request, timeout=TIMEOUT_S) for request in requests]
        refused = peer.sessions.Heartbeat(unknown, timeout=TIMEOUT_S)
        answers = await asyncio.gather(*calls)
        failure = await failure_of(refused)
        assert len(peer.node.commands) == before + 1
        assert len(peer.node.commands[-1].record_heartbeats.heartbeats) == 6
        assert peer.node.commands[-1].request_id == ""
        for session, answer in zip(sessions, answers, strict=True):
            assert answer.session.session_id == session.session_id
            assert answer.session.health == session_pb2.HEALTH_HEALTHY
            assert answer.applied_index == peer.node.machine.applied_index
        assert failure.code is grpc.StatusCode.NOT_FOUND


async def test_a_full_batch_of_heartbeats_does_not_wait(serve: Serve) -> None:
    async with serve(heartbeat_collect_ms=100, max_batch_items=2) as peer:
        sessions = [await peer.register(f"s{number}") for number in range(4)]
        calls = [
            peer.sessions.Heartbeat(
                session_pb2.HeartbeatRequest(session_id=session.session_id), timeout=TIMEOUT_S
            )
            for session in sessions
        ]
        await asyncio.gather(*calls)
        sizes = [
            len(command.record_heartbeats.heartbeats)
            for command in peer.node.commands
            if command.HasField("record_heartbeats")
        ]
        assert sizes == [2, 2]


async def test_the_same_heartbeat_twice_is_sent_once(serve: Serve) -> None:
    async with serve(heartbeat_collect_ms=50) as peer:
        session = await peer.register()
        request = session_pb2.HeartbeatRequest(session_id=session.session_id)
        gone = peer.sessions.Heartbeat(request, timeout=TIMEOUT_S)
        await eventually(lambda: peer.port.interceptor.calls == 1)
        kept = peer.sessions.Heartbeat(request, timeout=TIMEOUT_S)
        await eventually(lambda: peer.port.interceptor.calls == 2)
        gone.cancel()
        answer = await kept
        assert answer.session.session_id == session.session_id
        assert len(peer.node.commands[-1].record_heartbeats.heartbeats) == 1


async def test_every_heartbeat_of_a_lost_batch_hears_of_it(serve: Serve) -> None:
    async with serve(heartbeat_collect_ms=30) as peer:
        sessions = [await peer.register(f"s{number}") for number in range(3)]
        peer.node.error = UnavailableError("no quorum")
        calls = [
            peer.sessions.Heartbeat(
                session_pb2.HeartbeatRequest(session_id=session.session_id), timeout=TIMEOUT_S
            )
            for session in sessions
        ]
        failures = [await failure_of(call) for call in calls]
        assert {failure.code for failure in failures} == {grpc.StatusCode.UNAVAILABLE}
        assert {failure.reason for failure in failures} == {"NO_QUORUM"}


async def test_a_bug_under_a_batch_of_heartbeats_is_told_to_each(serve: Serve) -> None:
    async with serve(heartbeat_collect_ms=30) as peer:
        peer.node.broken = KeyError("secret")
        calls = [
            peer.sessions.Heartbeat(
                session_pb2.HeartbeatRequest(session_id=name), timeout=TIMEOUT_S
            )
            for name in ("a", "b")
        ]
        failures = [await failure_of(call) for call in calls]
        assert {failure.code for failure in failures} == {grpc.StatusCode.INTERNAL}


async def test_a_heartbeat_that_is_not_committed_in_time(peer: ServedPeer) -> None:
    session = await peer.register()
    peer.node.answers.clear()
    failure = await failure_of(
        peer.sessions.Heartbeat(
            session_pb2.HeartbeatRequest(session_id=session.session_id), timeout=0.3
        )
    )
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    assert failure.reason == "OUTCOME_UNKNOWN"
    peer.node.answers.set()


async def test_heartbeats_of_an_outage_are_a_handful_of_entries(serve: Serve) -> None:
    async with serve(heartbeat_collect_ms=0, max_batch_items=100) as peer:
        sessions = [await peer.register(f"s{number}") for number in range(30)]
        before = len(peer.node.commands)
        peer.node.answers.clear()
        calls: list[Any] = []
        for session in sessions:
            request = session_pb2.HeartbeatRequest(session_id=session.session_id)
            calls.append(peer.sessions.Heartbeat(request, timeout=TIMEOUT_S))
            await eventually(lambda: peer.port.interceptor.calls == len(calls))
        peer.node.answers.set()
        answers = await asyncio.gather(*calls)
        assert [answer.session.name for answer in answers] == [f"s{n}" for n in range(30)]
        assert len(peer.node.commands) - before <= 6


async def test_too_many_waiting_heartbeats_are_refused() -> None:
    node = FakeNode()
    collector = HeartbeatCollector(node, peer_config(max_concurrent_calls=2))
    waiting = [asyncio.ensure_future(collector.beat(name, 0, 5.0)) for name in ("a", "b")]
    await eventually(lambda: len(collector._waiting) == 2)
    with pytest.raises(OverloadedError):
        await collector.beat("c", 0, 5.0)
    await collector.close()
    for future in waiting:
        with pytest.raises(NotFoundError):
            await future


async def test_a_session_is_removed(peer: ServedPeer) -> None:
    session = await peer.register()
    request = session_pb2.DeregisterSessionRequest(session_id=session.session_id, incarnation=1)
    response = await peer.sessions.DeregisterSession(request, timeout=TIMEOUT_S)
    assert response.session.session_id == session.session_id
    assert response.released_tasks == 0
    get = session_pb2.GetSessionRequest(session_id=session.session_id)
    failure = await failure_of(peer.sessions.GetSession(get, timeout=TIMEOUT_S))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


@pytest.mark.parametrize(
    ("asked", "read"),
    [
        (common_pb2.CONSISTENCY_UNSPECIFIED, ReadConsistency.LINEARIZABLE),
        (common_pb2.CONSISTENCY_LINEARIZABLE, ReadConsistency.LINEARIZABLE),
        (common_pb2.CONSISTENCY_LOCAL, ReadConsistency.LOCAL),
    ],
)
async def test_reads_are_as_fresh_as_asked(
    peer: ServedPeer, asked: common_pb2.Consistency.ValueType, read: ReadConsistency
) -> None:
    session = await peer.register()
    request = session_pb2.GetSessionRequest(session_id=session.session_id, consistency=asked)
    response = await peer.sessions.GetSession(request, timeout=TIMEOUT_S)
    assert response.session.name == "worker"
    assert peer.node.reads[-1] is read


async def test_sessions_are_listed_a_page_at_a_time(peer: ServedPeer) -> None:
    for number in range(5):
        await peer.register(f"s{number}")
    names: list[str] = []
    token = ""
    for expected in (2, 2, 1):
        request = session_pb2.ListSessionsRequest(page_size=2, page_token=token)
        page = await peer.sessions.ListSessions(request, timeout=TIMEOUT_S)
        assert len(page.sessions) == expected
        names += [session.name for session in page.sessions]
        token = page.next_page_token
    assert token == ""
    assert sorted(names) == [f"s{number}" for number in range(5)]


async def test_sessions_are_scored(peer: ServedPeer) -> None:
    await peer.register("m", specialty="math")
    await peer.register("g")
    request = session_pb2.ScoreSessionsRequest(affinity="math")
    response = await peer.sessions.ScoreSessions(request, timeout=TIMEOUT_S)
    assert [(score.session.name, score.affinity_score) for score in response.scores] == [
        ("m", 1.0),
        ("g", 0.5),
    ]
