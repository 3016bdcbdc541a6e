"""Alerts through the machine: one record an episode, one sequence of events."""

from __future__ import annotations

import random
from typing import Any

import pytest
from gaia.alert.v1 import alert_pb2
from gaia.command.v1 import command_pb2

from gaia_grpc.state import alert_queries, topics
from gaia_grpc.state.timelines import TIMELINE_IDLE_MS
from tests.state.lessons import ROOM, Lesson

MEDIUM, HIGH, CRITICAL = (
    alert_pb2.SEVERITY_MEDIUM,
    alert_pb2.SEVERITY_HIGH,
    alert_pb2.SEVERITY_CRITICAL,
)
OPEN, ACKNOWLEDGED, RESOLVED = (
    alert_pb2.ALERT_STATE_OPEN,
    alert_pb2.ALERT_STATE_ACKNOWLEDGED,
    alert_pb2.ALERT_STATE_RESOLVED,
)
FIVE = (40, 30, 20, 10, 0)
NO_ESCALATION = ("alert.acknowledge_timeout", "0ms")
NO_MODEL = ("detector.min_decisions", "1000")
"""The model's own episodes: test_alert_model.py."""


def acknowledge(lesson: Lesson, alert_id: str, teacher: str = "tea") -> alert_pb2.Alert:
    body = {"alert_id": alert_id, "teacher_id": teacher}
    return lesson.do(acknowledge_alert=body).alert


def resolve(lesson: Lesson, alert_id: str, note: str = "") -> alert_pb2.Alert:
    body = {"alert_id": alert_id, "teacher_id": "tea", "note": note}
    return lesson.do(resolve_alert=body).alert


# --- patterns F1 and F2 --------------------------------------------------------------------------


@pytest.mark.parametrize("ages", [(50, 40, 30, 20, 10, 0), (0, 10, 20, 30, 40, 50)])
def test_f1_excessive_errors_in_either_order(ages: tuple[int, ...]) -> None:
    lesson = Lesson()
    lesson.errors(*ages)
    (alert,) = lesson.alerts()
    assert (alert.pattern, alert.severity, alert.state) == ("excessive_errors", HIGH, OPEN)
    assert (alert.student_id, alert.app_name, alert.classroom_id) == ("ana", "reading", ROOM)
    assert alert.pushed
    assert lesson.changes() == ["OPENED"]


def test_f1_in_one_batch_each_or_all_at_once_and_in_any_order() -> None:
    found = []
    for seed in range(6):
        lesson = Lesson()
        ages = [50, 40, 30, 20, 10, 0]
        random.Random(seed).shuffle(ages)
        for age in ages:
            lesson.errors(age)
        (alert,) = lesson.alerts()
        found.append((alert.pattern, alert.severity))
    assert set(found) == {("excessive_errors", HIGH)}


def test_f2_repeated_errors() -> None:
    lesson = Lesson()
    lesson.errors(20, 10, 0)
    (alert,) = lesson.alerts()
    assert (alert.pattern, alert.severity) == ("repeated_errors", MEDIUM)
    assert alert.detected_at_ms == lesson.now_ms


def test_two_errors_are_no_alert() -> None:
    lesson = Lesson()
    lesson.errors(10, 0)
    assert lesson.alerts() == []
    assert lesson.events().newest_sequence == 0


def test_errors_over_several_batches_raise_one_alert_step_by_step() -> None:
    lesson = Lesson()
    for _ in range(9):
        lesson.errors(0)
        lesson.advance(5_000)
    assert lesson.changes() == ["OPENED", "SEVERITY_RAISED", "SEVERITY_RAISED"]
    (alert,) = lesson.alerts()
    assert (alert.severity, alert.last_sequence) == (CRITICAL, 3)
    levels = [event.alert.severity for event in lesson.events().events]
    assert levels == [MEDIUM, HIGH, CRITICAL]


# --- what an alert says --------------------------------------------------------------------------


def test_an_alert_says_what_it_saw_and_how_sure_it_is() -> None:
    lesson = Lesson(level=2)
    lesson.publish([("correct", 1, lesson.now_ms - 100_000)] * 2)
    lesson.errors(*FIVE)
    (alert,) = lesson.alerts()
    assert 0.05 < alert.confidence < 0.5
    assert (alert.base_rate, alert.coverage, alert.model_version) == (0.05, 1.0, "prior-1")
    assert (alert.window_s, alert.suggested_action) == (300, "guidance")
    assert alert.explanation == (
        "5 errors in 60 s; 5 of 7 answers wrong in 5 min; 5 errors in a row; "
        f"estimated chance of unproductive struggle in the next 5 min "
        f"{round(alert.confidence * 100)} % (usual: 5 %)"
    )
    names = [evidence.feature for evidence in alert.evidence]
    assert names == ["errors_60s", "error_rate", "wrong_of_last_10", "error_streak"]
    assert alert.evidence[0].value == 5
    assert alert.evidence[3].value == 5
    assert alert.evidence[3].contribution > 0


def test_nothing_right_and_half_errors_in_words() -> None:
    lesson = Lesson(("alert.errors_window", "90s"), ("alert.critical_streak", "100"), level=2)
    lesson.publish([("error", 2.5, lesson.now_ms - age * 1_000) for age in range(4)])
    (alert,) = lesson.alerts()
    assert alert.explanation.startswith(
        "10 errors in 90 s; no correct answer in 5 min; 8 or more errors in a row; "
    )
    assert alert.evidence[0].feature == "errors_90s"


def test_medium_is_pushed_only_where_the_model_stands_behind_it() -> None:
    pushed = []
    for right in (0, 12):
        lesson = Lesson()
        lesson.publish([("correct", 1, lesson.now_ms - 100_000 - at) for at in range(right)])
        lesson.errors(20, 10, 0)
        (alert,) = lesson.alerts()
        assert alert.pushed == (alert.confidence >= 0.30)
        assert alert.suggested_action == "encouragement"
        pushed.append(alert.pushed)
    assert pushed == [True, False]


def test_a_finding_ahead_of_the_clock_is_judged_at_its_own_time() -> None:
    lesson = Lesson()
    lesson.errors(-1, -2, -3)
    (alert,) = lesson.alerts()
    assert alert.detected_at_ms == lesson.now_ms + 3_000
    assert alert.evidence[1].value == 4 / 7


# --- the life of an episode ----------------------------------------------------------------------


def test_defect_16_one_alert_an_episode_however_many_metrics() -> None:
    """The original sent an event for every further metric in the window."""
    lesson = Lesson()
    for _ in range(200):
        lesson.errors(0)
        lesson.publish([("keypress", 1, lesson.now_ms)])
        lesson.advance(500)
    assert len(lesson.alerts()) == 1
    assert lesson.changes() == ["OPENED", "SEVERITY_RAISED", "SEVERITY_RAISED"]


def test_defect_16_an_alert_ends_when_the_errors_do() -> None:
    """The third newest error leaves the window after 40 s, and 60 s later it is over."""
    lesson = Lesson()
    lesson.errors(*FIVE)
    start = lesson.now_ms
    lesson.advance(99_999)
    assert lesson.alerts()[0].state == OPEN
    lesson.advance(1)
    (alert,) = lesson.alerts()
    assert (alert.state, alert.resolved_at_ms) == (RESOLVED, start + 100_000)
    assert (alert.resolved_by, alert.severity) == ("", HIGH)
    assert lesson.changes() == ["OPENED", "RESOLVED"]


def test_new_errors_put_the_end_off() -> None:
    lesson = Lesson(NO_ESCALATION, NO_MODEL)
    lesson.errors(*FIVE)
    for _ in range(5):
        lesson.advance(19_000)
        lesson.errors(0)
    lesson.advance(79_000)
    assert lesson.alerts()[0].state == OPEN
    lesson.advance(10_000)
    assert lesson.alerts()[0].state == RESOLVED


def test_old_errors_that_come_late_open_an_alert_for_at_least_the_exit_time() -> None:
    lesson = Lesson(NO_MODEL)
    lesson.errors(250, 249, 248)
    lesson.advance(59_999)
    assert lesson.alerts()[0].state == OPEN
    lesson.advance(1)
    assert lesson.alerts()[0].state == RESOLVED


def test_after_the_end_there_is_quiet_but_for_what_is_worse() -> None:
    lesson = Lesson()
    lesson.errors(2, 1, 0)
    lesson.advance(120_000)
    assert lesson.changes() == ["OPENED", "RESOLVED"]
    lesson.errors(2, 1, 0)
    assert len(lesson.alerts()) == 1
    lesson.publish([("correct", 1, lesson.now_ms - 5_000)])
    lesson.errors(1.5, 0.5)
    assert [alert.severity for alert in lesson.alerts()] == [HIGH, MEDIUM]
    assert lesson.changes() == ["OPENED", "RESOLVED", "OPENED"]


def test_after_the_quiet_time_the_same_may_open_again() -> None:
    lesson = Lesson()
    lesson.errors(2, 1, 0)
    lesson.advance(120_000)
    closed_ms = lesson.alerts()[0].resolved_at_ms
    lesson.advance(closed_ms + 300_000 - lesson.now_ms - 1)
    lesson.errors(2, 1, 0)
    assert len(lesson.alerts()) == 1
    lesson.advance(1)
    lesson.errors(2, 1, 0)
    assert [alert.alert_id for alert in lesson.alerts()] == ["alert-2", "alert-1"]


def test_nothing_is_due_when_all_is_over() -> None:
    lesson = Lesson()
    lesson.errors(*FIVE)
    assert lesson.machine.next_due_ms() is not None
    lesson.advance(600_000)
    assert lesson.machine.next_due_ms() is None


def test_apps_and_students_have_alerts_of_their_own() -> None:
    lesson = Lesson()
    lesson.errors(*FIVE)
    lesson.errors(*FIVE, app="math")
    lesson.errors(*FIVE, student="bea", classroom_id="room-2")
    assert len(lesson.alerts()) == 3
    assert [alert.student_id for alert in lesson.alerts(classroom_id="room-2")] == ["bea"]
    assert len(lesson.alerts(student_id="ana")) == 2
    assert len(lesson.alerts(student_id="ana", classroom_id="room-2")) == 0


def test_changed_settings_hold_for_open_alerts() -> None:
    lesson = Lesson(NO_MODEL)
    lesson.errors(2, 1, 0)
    lesson.errors(2, 1, 0, timeline_id="t", sent_at_ms=60_000)
    changes = [
        {"name": "alert.cooldown", "value": "0ms"},
        {"name": "alert.exit_after", "value": "0ms"},
    ]
    lesson.do(update_settings={"changes": changes})
    lesson.advance(60_000)
    assert lesson.alerts()[0].state == RESOLVED
    lesson.publish([("a", 1, 120_000)], timeline_id="t", sent_at_ms=120_000)
    assert lesson.alerts(timeline_id="t")[0].state == RESOLVED
    lesson.errors(2, 1, 0)
    assert len(lesson.alerts()) == 2


# --- timelines -----------------------------------------------------------------------------------


def replay(lesson: Lesson, times_s: list[int], step: int) -> None:
    """Errors of a recording, `step` of them a batch; then its end at 600 s."""
    for at in range(0, len(times_s), step):
        part = times_s[at : at + step]
        samples = [("error", 1.0, second * 1_000) for second in part]
        lesson.publish(samples, timeline_id="t", sent_at_ms=max(part) * 1_000)
    lesson.publish([("keypress", 1.0, 600_000)], timeline_id="t", sent_at_ms=600_000)


def test_a_replay_gives_the_same_alerts_at_any_speed() -> None:
    found = []
    for pause_ms in (0, 1, 3_000):
        lesson = Lesson()
        for second in [10, 20, 30, 40, 50, 460, 470, 480]:
            lesson.publish(
                [("error", 1.0, second * 1_000)], timeline_id="t", sent_at_ms=second * 1_000
            )
            lesson.advance(pause_ms)
        lesson.publish([("keypress", 1, 900_000)], timeline_id="t", sent_at_ms=900_000)
        alerts = lesson.alerts(timeline_id="t")
        found.append([(a.severity, a.detected_at_ms, a.resolved_at_ms) for a in alerts])
    assert found[0] == [(MEDIUM, 480_000, 580_000), (HIGH, 30_000, 150_000)]
    assert found[1:] == [found[0], found[0]]


def test_skipped_ticks_run_before_the_batch() -> None:
    """The first episode ends at 130 s and its quiet time at 430 s, though no batch came then."""
    lesson = Lesson()
    replay(lesson, [10, 20, 30, 450, 451, 452], step=3)
    changes = lesson.changes(timeline_id="t")
    assert changes == ["OPENED", "RESOLVED", "OPENED", "RESOLVED"]
    ends = [alert.resolved_at_ms for alert in lesson.alerts(timeline_id="t")]
    assert ends == [570_000, 130_000]


def test_alerts_of_a_timeline_go_only_to_who_asks_for_it() -> None:
    lesson = Lesson()
    lesson.errors(*FIVE, timeline_id="t", sent_at_ms=100_000)
    assert lesson.alerts() == []
    assert lesson.events().events == []
    assert lesson.events().through_sequence == 1
    assert [event.alert.timeline_id for event in lesson.events(timeline_id="t").events] == ["t"]


def test_a_timeline_that_is_forgotten_ends_its_alerts() -> None:
    lesson = Lesson()
    lesson.errors(*FIVE, timeline_id="t", sent_at_ms=100_000)
    lesson.errors(*FIVE, student="bea", timeline_id="t", sent_at_ms=100_000)
    bea = lesson.alerts(timeline_id="t", student_id="bea")[0]
    resolve(lesson, bea.alert_id)
    lesson.advance(TIMELINE_IDLE_MS)
    lesson.publish([("a", 1, lesson.now_ms)])
    (alert,) = lesson.alerts(timeline_id="t", student_id="ana")
    assert (alert.state, alert.resolved_at_ms) == (RESOLVED, 100_000)
    assert lesson.changes(timeline_id="t") == ["OPENED", "OPENED", "RESOLVED", "RESOLVED"]


# --- what teachers do ----------------------------------------------------------------------------


def test_acknowledging_mutes_for_five_minutes_and_closes_nothing() -> None:
    lesson = Lesson()
    lesson.errors(*FIVE)
    alert = acknowledge(lesson, "alert-1")
    assert (alert.state, alert.acknowledged_by) == (ACKNOWLEDGED, "tea")
    assert alert.muted_until_ms == lesson.now_ms + 300_000
    assert lesson.alerts() == [alert]
    assert acknowledge(lesson, "alert-1") == alert, "the same teacher again changes nothing"
    assert acknowledge(lesson, "alert-1", "tom").acknowledged_by == "tom"
    lesson.errors(3, 2, 1)
    assert lesson.changes() == ["OPENED", "ACKNOWLEDGED", "ACKNOWLEDGED", "SEVERITY_RAISED"]
    assert lesson.alerts()[0].state == ACKNOWLEDGED


def test_acknowledging_again_after_the_mute_mutes_again() -> None:
    lesson = Lesson()
    lesson.errors(*FIVE)
    first = acknowledge(lesson, "alert-1")
    for _ in range(16):
        lesson.advance(20_000)
        lesson.errors(0)
    again = acknowledge(lesson, "alert-1")
    assert again.muted_until_ms == lesson.now_ms + 300_000
    assert again.last_sequence > first.last_sequence


def test_resolving_closes_and_keeps_who_and_why() -> None:
    lesson = Lesson()
    lesson.errors(*FIVE)
    alert = resolve(lesson, "alert-1", note="we talked")
    assert (alert.state, alert.resolved_by, alert.resolution_note) == (RESOLVED, "tea", "we talked")
    assert alert.resolved_at_ms == lesson.now_ms
    lesson.errors(1)
    assert len(lesson.alerts()) == 1, "quiet time"
    lesson.advance(600_000)
    assert lesson.changes() == ["OPENED", "RESOLVED"]


def test_a_timeline_s_alert_is_handled_at_its_own_clock() -> None:
    lesson = Lesson()
    lesson.errors(*FIVE, timeline_id="t", sent_at_ms=100_000)
    assert acknowledge(lesson, "alert-1").muted_until_ms == 400_000
    assert resolve(lesson, "alert-1").resolved_at_ms == 100_000


@pytest.mark.parametrize("command", ["acknowledge_alert", "resolve_alert"])
def test_what_can_t_be_handled_is_refused(command: str) -> None:
    lesson = Lesson()
    lesson.errors(*FIVE)
    resolve(lesson, "alert-1")

    def kind(alert_id: str, teacher: str = "tea") -> str:
        body: dict[str, Any] = {command: {"alert_id": alert_id, "teacher_id": teacher}}
        return command_pb2.RefusalKind.Name(lesson.refuse(**body).kind)

    assert kind("alert-1") == "REFUSAL_KIND_FAILED_PRECONDITION"
    assert kind("alert-1", teacher="") == "REFUSAL_KIND_INVALID_ARGUMENT"
    for unknown in ("alert-2", "alert-01", "alert-x", "1", "", "alert-²", "alert-" + "9" * 40):
        assert kind(unknown) == "REFUSAL_KIND_NOT_FOUND"


# --- events --------------------------------------------------------------------------------------


def test_events_have_one_sequence_without_gaps_and_hold_the_alert_as_it_was() -> None:
    lesson = Lesson(NO_ESCALATION, ("alert.push_budget", "9"))
    for student in ("ana", "bea", "cy"):
        lesson.errors(2, 1, 0, student=student)
        lesson.errors(4, 3, student=student)
    acknowledge(lesson, "alert-2")
    lesson.advance(400_000)
    answer = lesson.events()
    assert [event.sequence for event in answer.events] == list(range(1, 11))
    assert (answer.oldest_sequence, answer.newest_sequence) == (1, 10)
    bea = lesson.events(student_id="bea").events
    assert [event.alert.severity for event in bea] == [MEDIUM, HIGH, HIGH, HIGH]
    assert [event.alert.state for event in bea] == [OPEN, OPEN, ACKNOWLEDGED, RESOLVED]
    assert [event.sequence for event in bea] == [event.alert.last_sequence for event in bea]
    indexes = [event.applied_index for event in answer.events]
    assert indexes == sorted(indexes)
    assert indexes[0] > 0


def test_a_subscriber_goes_on_where_it_was() -> None:
    lesson = Lesson()
    for number in range(7):
        lesson.errors(2, 1, 0, student=f"s{number}")
    seen: list[int] = []
    through = 0
    while through < 7:
        answer = lesson.events(after=through, limit=2, classroom_id=ROOM)
        seen += [event.sequence for event in answer.events]
        through = answer.through_sequence
    assert seen == list(range(1, 8))


def test_events_by_severity() -> None:
    lesson = Lesson()
    lesson.errors(2, 1, 0)
    lesson.errors(*FIVE, student="bea")
    assert [e.alert.student_id for e in lesson.events(min_severity=HIGH).events] == ["bea"]
    assert [alert.student_id for alert in lesson.alerts(min_severity=HIGH)] == ["bea"]


def test_events_that_are_gone_are_refused_and_0_means_all_that_are_there() -> None:
    lesson = Lesson(("alert.retained_events", "3"))
    for number in range(6):
        lesson.errors(2, 1, 0, student=f"s{number}")
    refusal = lesson.query(alert_events={"after_sequence": 2}).refusal
    assert refusal.kind == command_pb2.REFUSAL_KIND_OUT_OF_RANGE
    details = {detail.key: detail.value for detail in refusal.details}
    assert details == {"oldest_sequence": "4"}
    assert [event.sequence for event in lesson.events(after=3).events] == [4, 5, 6]
    assert [event.sequence for event in lesson.events(after=0).events] == [4, 5, 6]
    refusal = lesson.query(alert_events={"after_sequence": -1}).refusal
    assert refusal.kind == command_pb2.REFUSAL_KIND_INVALID_ARGUMENT


def test_a_resolved_alert_goes_with_its_last_event_and_an_open_one_stays() -> None:
    lesson = Lesson(("alert.retained_events", "2"))
    lesson.errors(*FIVE, student="open")
    lesson.errors(*FIVE, student="done")
    resolve(lesson, "alert-2")
    assert len(lesson.alerts()) == 2
    lesson.errors(*FIVE, student="s1")
    lesson.errors(*FIVE, student="s2")
    assert [alert.student_id for alert in lesson.alerts()] == ["s2", "s1", "open"]
    lesson.refuse(resolve_alert={"alert_id": "alert-2", "teacher_id": "tea"})
    resolve(lesson, "alert-1")
    assert lesson.alerts()[-1].state == RESOLVED


def test_fewer_retained_events_hold_at_once() -> None:
    lesson = Lesson()
    for number in range(5):
        lesson.errors(2, 1, 0, student=f"s{number}")
    lesson.do(update_settings={"changes": [{"name": "alert.retained_events", "value": "2"}]})
    assert [event.sequence for event in lesson.events().events] == [4, 5]


def test_defect_17_nobody_s_slowness_drops_an_event() -> None:
    """The original's bus dropped events when its buffer of 100 was full: here a reader that comes
    after 1,000 of them reads every one."""
    lesson = Lesson()
    for number in range(500):
        lesson.errors(2, 1, 0, student=f"s{number}")
    lesson.advance(130_000)
    seen: list[int] = []
    while len(seen) < 1_000:
        page = lesson.events(after=len(seen), limit=100).events
        assert page
        seen += [event.sequence for event in page]
    assert seen == list(range(1, 1_001))


def test_the_topics_of_an_event() -> None:
    lesson = Lesson()
    lesson.machine.take_touched()
    lesson.errors(*FIVE)
    assert lesson.machine.take_touched() == [
        topics.classroom_metrics("", ROOM),
        topics.ALERTS,
        topics.classroom_alerts(ROOM),
    ]
    lesson.errors(*FIVE, student="bea", classroom_id="")
    assert lesson.machine.take_touched() == [topics.classroom_metrics("", ""), topics.ALERTS]


# --- lists ---------------------------------------------------------------------------------------


def test_alerts_newest_first_in_pages() -> None:
    lesson = Lesson()
    for number in range(7):
        lesson.errors(2, 1, 0, student=f"s{number}")
    resolve(lesson, "alert-3")
    found: list[str] = []
    token = ""
    while True:
        ask = {"page_size": 2, "page_token": token, "filter": {"classroom_id": ROOM}}
        page = lesson.ask(list_alerts=ask).list_alerts
        found += [alert.alert_id for alert in page.alerts]
        token = page.next_page_token
        if not token:
            break
    assert found == [f"alert-{number}" for number in range(7, 0, -1)]
    ask = {"state": RESOLVED}
    (alert,) = lesson.ask(list_alerts=ask).list_alerts.alerts
    assert alert.alert_id == "alert-3"


def test_a_page_that_had_to_look_far_names_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alert_queries, "SCANNED_AT_MOST", 2)
    lesson = Lesson()
    for number in range(5):
        lesson.errors(2, 1, 0, student=f"s{number}")
    ask: dict[str, Any] = {"filter": {"student_id": "s0"}}
    pages = []
    while True:
        page = lesson.ask(list_alerts=ask).list_alerts
        pages.append([alert.student_id for alert in page.alerts])
        if not page.next_page_token:
            break
        ask = {**ask, "page_token": page.next_page_token}
    assert pages == [[], [], ["s0"]]
