"""Sessions: names, incarnations, heartbeats and health in log time (design section 6)."""

from __future__ import annotations

import pytest
from gaia.command.v1 import command_pb2
from gaia.session.v1 import session_pb2

from gaia_grpc.state import topics
from tests.state.harness import START_MS, Log

HEALTHY, DEGRADED, FAILED = (
    session_pb2.HEALTH_HEALTHY,
    session_pb2.HEALTH_DEGRADED,
    session_pb2.HEALTH_FAILED,
)


def test_a_session_is_registered_as_described() -> None:
    log = Log()
    body = command_pb2.RegisterSession(
        name="tutor",
        tier=session_pb2.TIER_MANAGER,
        provider="claude",
        specialty="math",
        max_concurrent_tasks=5,
        labels=[session_pb2.Label(key="room", value="7")],
    )
    session = log.do(register_session=body).session.session
    assert session.session_id == "s-000000000001"
    assert (session.name, session.tier, session.provider) == ("tutor", 1, "claude")
    assert (session.specialty, session.max_concurrent_tasks) == ("math", 5)
    assert (session.health, session.incarnation, session.claimed_tasks) == (HEALTHY, 1, 0)
    assert session.last_heartbeat_time.ToMilliseconds() == START_MS
    assert session.register_time.ToMilliseconds() == START_MS
    assert [(label.key, label.value) for label in session.labels] == [("room", "7")]
    assert log.session(session.session_id) == session
    assert topics.SESSIONS in log.machine.take_touched()


def test_what_is_left_out_is_a_general_worker() -> None:
    log = Log()
    session = log.session(log.register("plain", specialty=""))
    assert (session.tier, session.specialty) == (session_pb2.TIER_WORKER, "general")


@pytest.mark.parametrize(
    ("body", "field"),
    [({"max_concurrent_tasks": 1}, "name"), ({"name": "x"}, "max_concurrent_tasks")],
)
def test_a_session_needs_a_name_and_room(body: dict[str, object], field: str) -> None:
    assert Log().refuse(register_session=body).field == field


def test_healthy_15_s_then_degraded_then_failed_at_30_s() -> None:
    log = Log()
    session = log.register("worker")
    log.advance(14_999)
    assert log.session(session).health == HEALTHY
    log.machine.take_touched()
    log.advance(1)
    assert log.session(session).health == DEGRADED
    assert topics.SESSIONS in log.machine.take_touched()
    log.advance(14_999)
    assert log.session(session).health == DEGRADED
    log.advance(1)
    assert log.session(session).health == FAILED
    assert log.session(session).last_heartbeat_time.ToMilliseconds() == START_MS


def test_nothing_falls_due_but_by_advance_time() -> None:
    log = Log()
    session = log.register("worker")
    log.now_ms += 60_000
    other = log.register("other")
    assert log.session(session).health == HEALTHY
    log.do(advance_time={})
    assert log.session(session).health == FAILED
    assert log.session(other).health == HEALTHY


def test_heartbeats_keep_a_session_healthy_and_heal_a_degraded_one() -> None:
    log = Log()
    session = log.register("worker")
    for _ in range(10):
        log.advance(10_000)
        assert log.beat(session)[0].session.health == HEALTHY
    log.advance(20_000)
    assert log.session(session).health == DEGRADED
    outcome = log.beat(session)[0]
    assert outcome.session.health == HEALTHY
    assert outcome.session.last_heartbeat_time.ToMilliseconds() == log.now_ms
    log.advance(14_999)
    assert log.session(session).health == HEALTHY
    log.advance(1)
    assert log.session(session).health == DEGRADED


def test_each_heartbeat_of_a_batch_has_its_own_outcome() -> None:
    log = Log()
    failed = log.register("failed")
    log.advance(30_000)
    renewed = log.register("renewed")
    log.advance(30_000)
    log.register("renewed")
    alive = log.register("alive")
    heartbeats = [
        {"session_id": alive, "incarnation": 1},
        {"session_id": "s-000000000099"},
        {"session_id": failed},
        {"session_id": renewed, "incarnation": 1},
        {"session_id": renewed, "incarnation": 2},
    ]
    result = log.do(record_heartbeats={"heartbeats": heartbeats}).heartbeats
    assert [outcome.refusal.reason for outcome in result.outcomes] == [
        "",
        "NOT_FOUND",
        "SESSION_FAILED",
        "STALE_INCARNATION",
        "",
    ]
    assert result.outcomes[4].session.incarnation == 2


def test_the_name_of_a_live_session_is_taken() -> None:
    log = Log()
    session = log.register("worker")
    body = command_pb2.RegisterSession(name="worker", max_concurrent_tasks=1)
    for health in ("healthy", "degraded"):
        refusal = log.refuse(register_session=body)
        assert (refusal.kind, refusal.reason) == (
            command_pb2.REFUSAL_KIND_ALREADY_EXISTS,
            "NAME_TAKEN",
        )
        details = {detail.key: detail.value for detail in refusal.details}
        assert details == {"session_id": session, "health": health}
        assert START_MS + 30_000 == log.now_ms + refusal.retry_after_ms
        log.advance(15_000 - 1 if health == "healthy" else 0)
        log.advance(1)


def test_a_failed_session_comes_back_under_its_name_with_the_same_id() -> None:
    log = Log()
    first = log.register("worker", specialty="math", capacity=3)
    log.advance(30_000)
    again = log.session(log.register("worker", specialty="art"))
    assert (again.session_id, again.incarnation) == (first, 2)
    assert (again.health, again.specialty, again.max_concurrent_tasks) == (HEALTHY, "art", 1)
    log.advance(14_999)
    assert log.session(first).health == HEALTHY


def test_a_removed_session_is_unknown_and_its_name_is_free() -> None:
    log = Log()
    first = log.register("worker")
    removed = log.do(deregister_session={"session_id": first, "incarnation": 1}).session
    assert (removed.session.session_id, removed.released_tasks) == (first, 0)
    assert log.query(get_session={"session_id": first}).refusal.reason == "NOT_FOUND"
    assert log.refuse(deregister_session={"session_id": first}).reason == "NOT_FOUND"
    assert log.register("worker") == "s-000000000002"
    stale = log.refuse(deregister_session={"session_id": "s-000000000002", "incarnation": 9})
    assert stale.reason == "STALE_INCARNATION"
    log.advance(60_000)


def test_a_failed_session_is_forgotten_after_its_retention() -> None:
    log = Log(("session.retention", "1m"), ("session.max_sessions", "2"))
    log.register("a")
    log.register("b")
    full = log.refuse(register_session={"name": "c", "max_concurrent_tasks": 1})
    assert full.reason == "TOO_MANY_SESSIONS"
    log.advance(30_000 + 60_000)
    assert not log.ask(list_sessions={}).list_sessions.sessions
    assert log.register("c") == "s-000000000003"


def test_lists_are_pages_in_the_order_of_ids_with_filters() -> None:
    log = Log()
    for number in range(5):
        body = command_pb2.RegisterSession(
            name=f"n{number}",
            max_concurrent_tasks=1,
            provider="claude" if number % 2 else "other",
            tier=session_pb2.TIER_MANAGER if number == 1 else session_pb2.TIER_WORKER,
        )
        log.do(register_session=body)
    seen: list[str] = []
    token = ""
    for _ in range(3):
        query = {"page_size": 2, "page_token": token}
        page = log.ask(list_sessions=query).list_sessions
        seen += [session.name for session in page.sessions]
        token = page.next_page_token
    assert (seen, token) == (["n0", "n1", "n2", "n3", "n4"], "")

    def names(**select: object) -> list[str]:
        page = log.ask(list_sessions=select).list_sessions
        return [session.name for session in page.sessions]

    assert names(provider="claude") == ["n1", "n3"]
    assert names(tier=session_pb2.TIER_MANAGER) == ["n1"]
    assert names(health=DEGRADED) == []
    log.advance(15_000)
    assert names(health=DEGRADED, tier=session_pb2.TIER_MANAGER) == ["n1"]
    assert log.query(list_sessions={"page_size": -1}).refusal.field == "page_size"


def test_a_page_goes_on_where_it_was_though_sessions_left() -> None:
    log = Log()
    ids = [log.register(f"n{number}") for number in range(4)]
    first = log.ask(list_sessions={"page_size": 2}).list_sessions
    log.do(deregister_session={"session_id": ids[1]})
    query = {"page_size": 2, "page_token": first.next_page_token}
    rest = log.ask(list_sessions=query).list_sessions
    assert [session.session_id for session in rest.sessions] == ids[2:]


def test_affinity_scores_are_the_guides_matrix() -> None:
    log = Log()
    for specialty in ("math", "art", "general"):
        log.register(specialty, specialty=specialty, capacity=2)
    matrix = {}
    for affinity in ("math", "art", "general"):
        scores = log.ask(score_sessions={"affinity": affinity}).score_sessions.scores
        matrix[affinity] = {score.session.specialty: score.affinity_score for score in scores}
    assert matrix == {
        "math": {"math": 1.0, "general": 0.5, "art": 0.0},
        "art": {"art": 1.0, "general": 0.5, "math": 0.0},
        "general": {"general": 1.0, "math": 0.5, "art": 0.5},
    }


def test_scores_come_best_first_with_reasons() -> None:
    log = Log()
    busy = log.register("busy", specialty="math")
    log.enqueue(affinity="math")
    log.claim(busy)
    log.register("other", specialty="art")
    log.register("half", specialty="general", capacity=2)
    log.register("free", specialty="math")
    scores = log.ask(score_sessions={"affinity": "math"}).score_sessions.scores
    assert [(s.session.name, s.eligible, s.free_capacity) for s in scores] == [
        ("free", True, 1),
        ("half", True, 2),
        ("busy", False, 0),
        ("other", False, 1),
    ]
    assert scores[0].explanation == "specialty is math; healthy; holds 0 of 1 tasks"
    assert "match by half" in scores[1].explanation
    assert "does not match math" in scores[3].explanation
    best = log.ask(score_sessions={"affinity": "math", "page_size": 1}).score_sessions.scores
    assert [score.session.name for score in best] == ["free"]
    assert log.ask(score_sessions={}).score_sessions.scores[0].session.name == "half"


def test_the_order_of_scores_can_be_computed_from_their_parts() -> None:
    log = Log()
    for number, (specialty, capacity, held) in enumerate(
        [("math", 4, 3), ("math", 4, 1), ("general", 8, 0), ("art", 8, 0), ("math", 2, 2)]
    ):
        session_id = log.register(f"s{number}", specialty=specialty, capacity=capacity)
        for _ in range(held):
            log.enqueue(affinity="math")
        log.claim(session_id, held or 1)
    log.register("silent", specialty="math", capacity=8)
    log.advance(16_000)
    log.beat(*(f"s-{number:012d}" for number in range(1, 6)))
    scores = list(log.ask(score_sessions={"affinity": "math"}).score_sessions.scores)
    assert [(one.session.name, one.score) for one in scores] == [
        ("s1", 1.0 + 0.75 / 4),
        ("s0", 1.0 + 0.25 / 4),
        ("s2", 0.5 + 1.0 / 4),
        ("s4", 0.0),  # healthy, but full
        ("silent", 0.0),  # as good, but degraded
        ("s3", 0.0),
    ]
    for one in scores:
        held = one.session.claimed_tasks
        assert one.capacity_score == one.free_capacity / one.session.max_concurrent_tasks
        assert one.free_capacity == one.session.max_concurrent_tasks - held
        expected = one.affinity_score + one.capacity_score / 4 if one.eligible else 0.0
        assert one.score == expected
    parts = [
        (-one.score, -one.affinity_score, -one.health_score, -one.free_capacity,
         one.session.session_id)
        for one in scores
    ]  # fmt: skip
    assert parts == sorted(parts)


def register_labelled(log: Log, name: str, specialty: str = "math", **labels: str) -> str:
    body = command_pb2.RegisterSession(
        name=name,
        specialty=specialty,
        max_concurrent_tasks=1,
        labels=[session_pb2.Label(key=key, value=value) for key, value in sorted(labels.items())],
    )
    return log.do(register_session=body).session.session.session_id


def test_sessions_are_selected_by_specialty_and_labels() -> None:
    log = Log()
    register_labelled(log, "a", room="5b", gpu="")
    register_labelled(log, "b", room="5c")
    register_labelled(log, "c", specialty="art", room="5b")

    def names(specialty: str = "", **labels: str) -> list[str]:
        query = session_pb2.ListSessionsRequest(
            specialty=specialty,
            labels=[session_pb2.Label(key=key, value=value) for key, value in labels.items()],
        )
        found = log.ask(list_sessions=query).list_sessions.sessions
        return [session.name for session in found]

    assert names(specialty="math") == ["a", "b"]
    assert names(room="5b") == ["a", "c"]
    assert names(room="") == ["a", "b", "c"]
    assert names(room="5b", gpu="") == ["a"]
    assert names(specialty="art", gpu="") == []


def test_a_watch_by_labels_hears_that_a_session_came_back_without_them() -> None:
    log = Log()
    session_id = register_labelled(log, "a", room="5b")
    query = {"labels": [session_pb2.Label(key="room", value="5b")]}
    first = log.ask(watch_sessions={"filter": query, "limit": 10}).watch_sessions
    assert [message.kind for message in first.messages] == [
        session_pb2.WATCH_KIND_EXISTING,
        session_pb2.WATCH_KIND_COMPLETE,
    ]
    log.advance(30_000)
    register_labelled(log, "a", room="5c")
    body = {"filter": query, "limit": 10, "place": first.place}
    then = log.ask(watch_sessions=body).watch_sessions.messages
    assert [message.kind for message in then][-1] == session_pb2.WATCH_KIND_REMOVED
    assert then[-1].session.session_id == session_id


def test_the_old_process_of_a_session_that_registered_again_claims_nothing() -> None:
    log = Log()
    session_id = log.register("a")
    log.advance(30_000)
    assert log.register("a") == session_id
    log.enqueue()
    refusal = log.refuse(claim_tasks={"session_id": session_id, "max_tasks": 1, "incarnation": 1})
    assert refusal.reason == "STALE_INCARNATION"
    assert {detail.key: detail.value for detail in refusal.details}["incarnation"] == "2"
    assert log.claim(session_id, incarnation=2)


def test_below_level_3_the_incarnation_of_a_claim_is_not_looked_at() -> None:
    log = Log(level=2)
    session_id = log.register("a")
    log.enqueue()
    assert log.claim(session_id, incarnation=7)
