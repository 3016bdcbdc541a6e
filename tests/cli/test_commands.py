"""Each noun and `gaia call` against three real peers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gaia_grpc.cli.main import main
from gaia_grpc.services.registry import NOT_SERVED
from gaia_grpc.testing import Cluster

Gaia = Callable[..., tuple[int, str, str]]
ERRORS = [{"metricType": "error", "value": 1.0}] * 5


@pytest.fixture
def gaia(
    cluster3: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Gaia:
    """Runs a command on the cluster: (exit code, stdout, stderr)."""
    monkeypatch.setenv("GAIA_CLUSTER", ",".join(cluster3.addresses))

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def answer(gaia: Gaia, *arguments: str) -> Any:
    code, out, err = gaia(*arguments)
    assert code == 0, err
    return json.loads(out)


def register(gaia: Gaia, name: str, provider: str = "test") -> str:
    request = json.dumps({"name": name, "specialty": "math", "provider": provider})
    session = answer(gaia, "call", "SessionService/RegisterSession", request)["session"]
    return str(session["sessionId"])


def publish_errors(gaia: Gaia, classroom: str, student: str) -> None:
    batch = {
        "sourceId": student,
        "sourceEpoch": "1",
        "sequence": "1",
        "classroomId": classroom,
        "studentId": student,
        "appName": "math",
        "metrics": ERRORS,
    }
    found = answer(gaia, "call", "MetricsService/PublishMetrics", json.dumps({"batches": [batch]}))
    assert found["results"][0]["acceptedCount"] == 5


# --- status ---------------------------------------------------------------------------------------


def test_status_shows_every_peer_and_the_leader(gaia: Gaia, cluster3: Cluster) -> None:
    leader = cluster3.leader()
    code, out, _ = gaia("status")
    assert code == 0
    for node_id in cluster3.node_ids:
        assert re.search(rf"^{node_id} +{re.escape(cluster3.address(node_id))} ", out, re.M)
    assert out.endswith(f"3 of 3 peers answer; leader {leader}\n")
    found = answer(gaia, "status", "--json")
    assert found["leaderId"] == leader
    assert [peer["reachable"] for peer in found["peers"]] == [True] * 3
    assert len({peer["clusterId"] for peer in found["peers"]}) == 1


def test_status_without_a_majority_exits_with_1(gaia: Gaia, cluster3: Cluster) -> None:
    cluster3.kill("n1", "n2")
    cluster3.wait_until(lambda: not cluster3.status("n3").writable, "n3 knows that it is alone")
    code, out, err = gaia("status")
    assert code == 1
    assert out.count(" down ") == 2
    assert out.endswith("1 of 3 peers answer; no leader\n")
    assert err == ""


# --- nouns ----------------------------------------------------------------------------------------


def test_sessions(gaia: Gaia) -> None:
    session_id = register(gaia, "cli-session")
    assert gaia("sessions")[1] == gaia("sessions", "list")[1]
    assert re.search(rf"^{session_id} +cli-session +worker +test +math +healthy +0/1 ",
                     gaia("sessions", "--provider", "test")[1], re.M)  # fmt: skip
    names = [each["name"] for each in answer(gaia, "sessions", "--json")["sessions"]]
    assert "cli-session" in names
    assert gaia("sessions", "--health", "failed")[1] == "no sessions\n"
    assert gaia("sessions", "--tier", "manager")[1] == "no sessions\n"
    assert "--tier must be" in gaia("sessions", "--tier", "boss")[2]
    assert answer(gaia, "sessions", "get", session_id, "--json")["name"] == "cli-session"
    assert "healthy" in gaia("sessions", "get", session_id)[1]
    code, _, err = gaia("sessions", "get", "nobody")
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_tasks_from_enqueue_to_history(gaia: Gaia) -> None:
    enqueue = ["tasks", "enqueue", "cli.grade", "--payload", "essay 7", "--key", "k1"]
    enqueue += ["--affinity", "math", "--priority", "5"]
    task_id = gaia(*enqueue)[1].split()[0]
    assert gaia(*enqueue)[1] == f"{task_id} existed already\n"
    listed = gaia("tasks", "--type", "cli.grade")[1]
    assert re.search(rf"^{task_id} +cli.grade +pending +5 +math +0/3 ", listed, re.M)
    session_id = register(gaia, "cli-grader")
    claim = json.dumps({"sessionId": session_id, "taskTypes": ["cli.grade"]})
    task = answer(gaia, "call", "TaskService/ClaimTasks", claim)["tasks"][0]
    assert task["payload"] == "ZXNzYXkgNw=="
    done = {
        "taskId": task_id,
        "claimToken": task["claimToken"],
        "sessionId": session_id,
        "result": "QSs=",
    }
    answer(gaia, "call", "gaia.task.v1.TaskService/CompleteTask", json.dumps(done))
    shown = gaia("tasks", "get", task_id)[1]
    assert re.search(r"^result +A\+", shown, re.M)
    assert [line.split()[2] for line in shown.splitlines() if line.startswith("20")] == [
        "enqueued",
        "claimed",
        "completed",
    ]
    assert answer(gaia, "tasks", "get", task_id, "--json")["state"] == "TASK_STATE_COMPLETED"
    assert "completed_total" in gaia("tasks", "stats")[1]
    assert int(answer(gaia, "tasks", "stats", "--json")["completedTotal"]) >= 1


def test_lists_are_read_page_by_page_up_to_the_limit(gaia: Gaia) -> None:
    tasks = [{"taskType": "cli.many"} for _ in range(1_000)]
    request = json.dumps({"tasks": tasks})
    for _ in range(2):
        assert len(answer(gaia, "call", "TaskService/BatchEnqueueTasks", request)["tasks"]) == 1_000
    whole = answer(gaia, "tasks", "list", "--type", "cli.many", "--limit", "5000", "--json")
    assert len({task["taskId"] for task in whole["tasks"]}) == 2_000
    _, out, err = gaia("tasks", "list", "--type", "cli.many")
    assert out.count("cli.many") == 100
    assert err == "showing 100, more exist: --limit N or --state, --type\n"
    assert gaia("tasks", "list", "--type", "cli.many", "--limit", "2000")[2] == ""
    part = answer(gaia, "tasks", "list", "--type", "cli.many", "--limit", "1500", "--json")
    assert part["tasks"] == whole["tasks"][:1_500]


def test_tasks_and_sessions_are_watched(gaia: Gaia) -> None:
    task_id = gaia("tasks", "enqueue", "cli.watched", "--affinity", "w.math")[1].split()[0]
    assert gaia("tasks", "cancel", task_id, "--reason", "snow day")[0] == 0
    other = gaia("tasks", "enqueue", "cli.watched")[1].split()[0]
    _, out, notes = gaia("tasks", "watch", "--type", "cli.watched", "--count", "2")
    assert [line.split()[1:5] for line in out.splitlines()] == [
        ["existing", task_id, "cancelled", "cli.watched"],
        ["existing", other, "pending", "cli.watched"],
    ]
    assert "snow day" in out
    assert re.match(r"INDEX +CHANGE +TASK +STATE +TYPE +RETRIES +TOKEN +CLAIMED BY", notes)
    filters = ("--affinity", "w.math", "--state", "cancelled", "--task", task_id)
    [message, complete] = documents(gaia("tasks", "watch", *filters, "--count", "2", "--json")[1])
    assert [task["taskId"] for task in message["tasks"]] == [task_id]
    assert complete["kind"] == "WATCH_KIND_COMPLETE"
    session_id = register(gaia, "cli-watched", "cli-watch")
    _, out, _ = gaia("sessions", "watch", "--provider", "cli-watch", "--count", "1")
    assert re.match(rf"\d+ +existing +{session_id} +healthy +0/1 +math +worker +cli-watched$", out)
    assert gaia("tasks", "watch", "--state", "sleeping")[0] == 2
    assert gaia("sessions", "watch", "--health", "tired")[0] == 2


def documents(text: str) -> list[Any]:
    """JSON documents one after another."""
    decoder = json.JSONDecoder()
    found = []
    while text.strip():
        document, end = decoder.raw_decode(text.strip())
        found.append(document)
        text = text.strip()[end:]
    return found


def test_an_assignment_is_explained(gaia: Gaia) -> None:
    session_id = register(gaia, "cli-explained")
    register(gaia, "cli-explained-too")
    task_id = gaia("tasks", "enqueue", "cli.explain", "--affinity", "x.art")[1].split()[0]
    _, out, _ = gaia("tasks", "explain", task_id)
    assert out.startswith(f"{task_id} is pending; none of ")
    assert re.search("^AFFINITY +FREE +ELIGIBLE +", out, re.M)
    assert re.search(
        rf"^0\.0 +1 +no +{session_id} +cli-explained +specialty math does not match x\.art; ",
        out, re.M,
    )  # fmt: skip
    found = answer(gaia, "tasks", "explain", task_id, "--json")
    assert found["task"]["taskId"] == task_id
    assert "showing 1 of" in gaia("tasks", "explain", task_id, "--limit", "1")[2]
    assert gaia("tasks", "explain", "t-9")[0] == 1


def test_metrics_and_alerts(gaia: Gaia) -> None:
    publish_errors(gaia, "cli-class", "cli-ana")
    shown = gaia("metrics", "list", "cli-class")[1]
    assert re.search(r"^cli-ana +math +error +5 +5 +1 ", shown, re.M)
    assert answer(gaia, "metrics", "get", "cli-ana", "math", "--json")["aggregate"]["metrics"]
    assert "error" in gaia("metrics", "get", "cli-ana", "math")[1]
    update = answer(gaia, "metrics", "watch", "cli-class", "--count", "1", "--json")
    assert update["aggregates"][0]["studentId"] == "cli-ana"
    alerts = answer(gaia, "alerts", "--classroom", "cli-class", "--json")["alerts"]
    assert [alert["studentId"] for alert in alerts] == ["cli-ana"]
    assert re.search(r" cli-ana +math +excessive_errors +high +open ",
                     gaia("alerts", "list", "--student", "cli-ana")[1])  # fmt: skip
    watch = ("alerts", "watch", "--student", "cli-ana", "--after", "0", "--count", "1")
    _, event, notes = gaia(*watch)
    assert notes.splitlines()[0].startswith("waiting for alerts")
    assert "RAISED (log time, UTC)" in notes
    assert re.match(r"\d+  20\d\d-\d\d-\d\d \d\d:\d\d:\d\d  opened  high  cli-ana ", event)
    assert "opened  high  cli-ana in math: excessive_errors" in event
    assert gaia("alerts", "--classroom", "nowhere")[1] == "no alerts\n"
    assert gaia("metrics", "list", "nowhere")[1].startswith("no metrics of classroom nowhere")


def test_what_is_missing_has_a_column(gaia: Gaia) -> None:
    batch = {
        "sourceId": "cli-gaps",
        "sourceEpoch": "1",
        "sequence": "1",
        "classroomId": "cli-gaps",
        "studentId": "cli-finn",
        "appName": "math",
        "metrics": [{"metricType": "keypress", "value": 1}],
        "omissions": [{"metricType": "keypress", "count": 3}, {"metricType": "blur", "count": 2}],
    }
    answer(gaia, "call", "MetricsService/PublishMetrics", json.dumps({"batches": [batch]}))
    for command in (("list", "cli-gaps"), ("get", "cli-finn", "math")):
        shown = gaia("metrics", *command)[1]
        assert re.search(r" P95 +MISSING$", shown, re.M)
        assert re.search(r"^cli-finn +math +keypress +1 +1 .* 3$", shown, re.M)
        assert re.search(r"^cli-finn +math +blur +0 +- .* - +2$", shown, re.M)


def test_past_windows(gaia: Gaia) -> None:
    for sequence, time_ms in enumerate((1_700_000_000_000, 1_700_000_500_000), start=1):
        batch = {
            "sourceId": "cli-log",
            "sourceEpoch": "1",
            "sequence": str(sequence),
            "sentAtMs": str(time_ms),
            "timelineId": "cli-lesson",
            "studentId": "cli-eve",
            "appName": "math",
            "metrics": ERRORS,
        }
        answer(gaia, "call", "MetricsService/PublishMetrics", json.dumps({"batches": [batch]}))
    ask = ("metrics", "history", "cli-eve", "math", "--timeline", "cli-lesson")
    table = gaia(*ask)[1]
    assert re.search(r"^END \(log time, UTC\) +REVISION +METRIC +COUNT ", table, re.M)
    assert re.search(r"^2023-11-14 22:15:00 +0 +error +5 +5 +1 ", table, re.M)
    assert "MISSING" not in table
    (window,) = answer(gaia, *ask, "--json")["windows"]
    assert window["aggregate"]["windowEndMs"] == "1700000100000"
    assert gaia("metrics", "history", "nobody", "math")[1] == "no past windows of nobody in math\n"


def test_an_alert_is_acknowledged_and_resolved(gaia: Gaia) -> None:
    publish_errors(gaia, "cli-class-2", "cli-eva")
    alert_id = answer(gaia, "alerts", "--student", "cli-eva", "--json")["alerts"][0]["alertId"]
    options = (alert_id, "--teacher", "ms-frizzle")
    assert gaia("alerts", "acknowledge", *options)[1] == f"{alert_id} acknowledged\n"
    resolved = answer(gaia, "alerts", "resolve", *options, "--note", "talked", "--json")
    assert (resolved["state"], resolved["acknowledgedBy"]) == ("ALERT_STATE_RESOLVED", "ms-frizzle")
    watched = gaia("alerts", "watch", "--student", "cli-eva", "--after", "0", "--count", "3")[1]
    assert [line.split()[3] for line in watched.splitlines()] == [
        "opened",
        "acknowledged",
        "resolved",
    ]
    assert gaia("alerts", "resolve", "alert-0", "--teacher", "ms-frizzle")[0] == 1


def test_an_alert_is_snoozed_and_answered(gaia: Gaia) -> None:
    publish_errors(gaia, "cli-class-3", "cli-gil")
    roster = ("--teachers", "ms-honey", "--students", "cli-gil")
    assert gaia("classrooms", "put", "cli-class-3", *roster)[0] == 0
    alert_id = answer(gaia, "alerts", "--teacher", "ms-honey", "--json")["alerts"][0]["alertId"]
    by = ("--teacher", "ms-honey")
    assert gaia("alerts", "snooze", alert_id, *by, "--for", "90s")[1] == f"{alert_id} open\n"
    assert gaia("alerts", "snooze", alert_id, *by, "--for", "soon")[0] == 2
    done = gaia("alerts", "intervene", "help", "--student", "cli-gil", *by, "--alert", alert_id)
    assert done[1].startswith("intervention-")
    table = gaia("alerts", "interventions", "--student", "cli-gil")[1]
    assert re.search(rf" cli-gil +ms-honey +help +{alert_id} +5 of 5 wrong, 0\.\d\d +-", table)
    assert gaia("alerts", "interventions", "--student", "nobody")[1] == "no interventions\n"
    listed = answer(gaia, "alerts", "--student", "cli-gil", "--json")["alerts"][0]
    assert (listed["state"], listed["interventions"]) == ("ALERT_STATE_ACKNOWLEDGED", 1)


def test_the_past_is_computed_again_with_other_settings(gaia: Gaia) -> None:
    publish_errors(gaia, "cli-class-4", "cli-hal")
    replay = ("alerts", "replay", "--classroom", "cli-class-4", "--since", "1h")
    told = gaia(*replay)[1]
    assert told == "1 alerts with the settings as they are, 1 with these\nnothing differs\n"
    changes = ("--set", "alert.repeated_errors=9", "--set", "alert.excessive_errors=10")
    table = gaia(*replay, *changes)[1]
    assert re.search(r"^gone +.* cli-hal +math +excessive_errors high +-$", table, re.M)
    found = json.loads(gaia(*replay, *changes, "--json")[1])
    assert (found["alertsBefore"], found["alertsAfter"]) == (1, 0)
    assert gaia(*replay, "--set", "alert.none=1")[0] == 1
    assert gaia(*replay, "--set", "nonsense")[0] == 2
    empty = gaia("alerts", "replay", "--classroom", "nowhere")[1]
    assert empty.startswith("0 alerts")


def test_operational_alerts_are_a_list_of_their_own(gaia: Gaia) -> None:
    task_id = gaia("tasks", "enqueue", "cli.dead")[1].split()[0]
    assert gaia("tasks", "enqueue", "cli.report", "--after", task_id)[0] == 0
    assert gaia("tasks", "cancel", task_id)[0] == 0
    table = gaia("alerts", "list", "--operational")[1]
    assert re.search(r" task_dead_lettered +cli\.report +medium +open +1 +1 task", table)
    watch = gaia("alerts", "watch", "--operational", "--after", "0", "--count", "1")[1]
    assert "task_dead_lettered" in watch


def test_a_task_is_cancelled_and_requeued(gaia: Gaia) -> None:
    task_id = gaia("tasks", "enqueue", "cli.cancel")[1].split()[0]
    assert re.search(r"^state +cancelled$", gaia("tasks", "cancel", task_id)[1], re.M)
    requeued = answer(gaia, "tasks", "requeue", task_id, "--json")
    assert requeued["state"] == "TASK_STATE_PENDING"


def fail_for_good(gaia: Gaia, session_id: str, task_type: str, error_type: str) -> str:
    """One dead letter; returns its id."""
    task_id = gaia("tasks", "enqueue", task_type, "--max-retries", "0")[1].split()[0]
    claim = json.dumps({"sessionId": session_id, "taskTypes": [task_type]})
    [task] = answer(gaia, "call", "TaskService/ClaimTasks", claim)["tasks"]
    failure = {
        "taskId": task_id,
        "claimToken": task["claimToken"],
        "sessionId": session_id,
        "error": "the model said no",
        "errorType": error_type,
    }
    answer(gaia, "call", "TaskService/FailTask", json.dumps(failure))
    return task_id


def test_dead_letters_are_listed_and_requeued_by_the_kind_of_their_error(gaia: Gaia) -> None:
    session_id = register(gaia, "cli-undertaker")
    late = [fail_for_good(gaia, session_id, "cli.dead", "Timeout") for _ in range(2)]
    wrong = fail_for_good(gaia, session_id, "cli.dead", "ValueError")
    shown = gaia("tasks", "dead", "--type", "cli.dead")[1]
    assert re.search(rf"^{wrong} +cli.dead +ValueError +1 .* the model said no$", shown, re.M)
    found = answer(gaia, "tasks", "dead", "--error-type", "Timeout", "--json")["tasks"]
    assert [task["taskId"] for task in found] == late
    cut = gaia("tasks", "dead", "--type", "cli.dead", "--limit", "2")
    assert cut[2].startswith("showing 2, more exist")
    once = gaia("tasks", "get", wrong)[1]
    assert "ValueError: the model said no" in once
    assert re.search(r"^retries +0 of 0$", once, re.M)  # one attempt failed, none was a retry
    requeue = ["tasks", "requeue", "--failed", "--type", "cli.dead", "--error-type", "Timeout"]
    assert gaia(*requeue)[1] == "requeued 2 of 2 tasks\n"
    assert wrong in gaia("tasks", "dead", "--type", "cli.dead")[1]
    code, out, err = gaia("tasks", "requeue", wrong, late[0])
    assert (code, out) == (1, "requeued 1 of 2 tasks\n")
    assert err == f"refused: task {late[0]} is PENDING and can't be requeued\n"
    assert gaia("tasks", "dead", "--type", "cli.dead")[1] == "no dead letters\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["requeue"], "name the tasks, or all dead letters with --failed"),
        (["requeue", "t-1", "--failed"], "not both"),
        (["requeue", "t-1", "--error-type", "E"], "go with --failed"),
        (["list", "--state", "done"], "'done' is none of pending, scheduled, "),
        (["enqueue", "grade", "--deadline", "soon"], "--deadline: 'soon' is no duration"),
        (["policy", "put", "grade", "--retention", "1"], "--retention: '1' is no duration"),
    ],
)
def test_what_the_tasks_command_does_not_understand(
    gaia: Gaia, arguments: list[str], complaint: str
) -> None:
    code, _, err = gaia("tasks", *arguments)
    assert code == 2
    assert complaint in err


def test_a_task_with_a_deadline_and_a_dependency(gaia: Gaia) -> None:
    first = gaia("tasks", "enqueue", "cli.first")[1].split()[0]
    enqueue = ["tasks", "enqueue", "cli.then", "--after", first, "--deadline", "10m"]
    then = gaia(*enqueue)[1].split()[0]
    shown = gaia("tasks", "get", then)[1]
    assert re.search(r"^state +blocked$", shown, re.M)
    assert re.search(rf"^depends on +{first} \(1 of 1 not completed\)$", shown, re.M)
    assert re.search(r"^deadline \(log time, UTC\) +20", shown, re.M)
    assert then in gaia("tasks", "--state", "blocked")[1]
    answer(gaia, "tasks", "cancel", first, "--json")
    assert re.search(r"^state +failed$", gaia("tasks", "get", then)[1], re.M)
    code, _, err = gaia("tasks", "requeue", then)
    assert code == 1
    assert first in err
    shown = gaia("tasks", "requeue", first, "--with-dependents")[1]
    assert shown.endswith("and 1 tasks that failed because it did\n")
    assert re.search(r"^state +blocked$", gaia("tasks", "get", then)[1], re.M)


def test_a_task_is_waited_for(gaia: Gaia) -> None:
    session_id = register(gaia, "cli-waiter")
    task_id = gaia("tasks", "enqueue", "cli.wait")[1].split()[0]
    code, out, err = gaia("tasks", "wait", task_id, "--timeout", "0.2")
    assert (code, out) == (1, "")
    assert "is not done after 0.2 s (it is PENDING)" in err
    claim = json.dumps({"sessionId": session_id, "taskTypes": ["cli.wait"]})
    [task] = answer(gaia, "call", "TaskService/ClaimTasks", claim)["tasks"]
    done = {
        "taskId": task_id,
        "claimToken": task["claimToken"],
        "sessionId": session_id,
        "result": "QSs=",
    }
    answer(gaia, "call", "TaskService/CompleteTask", json.dumps(done))
    assert gaia("tasks", "wait", task_id) == (0, "A+\n", "")
    assert answer(gaia, "tasks", "wait", task_id, "--json")["result"] == "QSs="
    dead = fail_for_good(gaia, session_id, "cli.wait", "ValueError")
    code, out, err = gaia("tasks", "wait", dead)
    assert (code, out) == (1, "")
    assert "failed for good after 1 failed attempts: ValueError: the model said no" in err
    assert f"gaia tasks requeue {dead}" in err


def test_policies_of_task_types(gaia: Gaia) -> None:
    assert gaia("tasks", "policy")[1] == "no policies: the task settings hold\n"
    put = ["tasks", "policy", "put", "cli.policy", "--max-retries", "5", "--retry-base", "1500ms"]
    put += ["--retry-jitter", "0.25", "--final-error", "ValueError", "--final-error", "KeyError"]
    row = r"^cli.policy +5 +1.5s +- +0.25 +- +- +(ValueError KeyError|KeyError ValueError)$"
    assert re.search(row, gaia(*put)[1], re.M)
    assert re.search(row, gaia("tasks", "policy", "list")[1], re.M)
    [policy] = answer(gaia, "tasks", "policy", "--json")["policies"]
    assert policy["maxRetries"] == 5
    task_id = gaia("tasks", "enqueue", "cli.policy")[1].split()[0]
    assert re.search(r"^retries +0 of 5$", gaia("tasks", "get", task_id)[1], re.M)
    code, _, err = gaia("tasks", "policy", "put", "cli.policy", "--claim-timeout", "1ms")
    assert code == 1
    assert "policy.claim_timeout must be 50ms to 7d" in err
    deleted = gaia("tasks", "policy", "delete", "cli.policy")[1]
    assert deleted == "the settings hold for cli.policy again\n"
    assert gaia("tasks", "policy", "delete", "cli.policy")[0] == 1


def test_scores_put_the_best_session_first(gaia: Gaia) -> None:
    session_id = register(gaia, "cli-scored")
    shown = gaia("sessions", "score", "math")[1]
    assert re.search(rf"^1.250 +1.0 +1.00 +1.0 +1 +yes +{session_id} +cli-scored ", shown, re.M)
    assert gaia("sessions", "scores", "math")[1].split()[:3] == ["SCORE", "AFFINITY", "CAPACITY"]
    scores = answer(gaia, "sessions", "score", "reading", "--json")["scores"]
    mine = next(each for each in scores if each["session"]["sessionId"] == session_id)
    assert mine.get("affinityScore", 0.0) == 0.0


def test_sessions_are_selected_by_labels(gaia: Gaia) -> None:
    labels = [{"key": "room", "value": "5b"}]
    request = json.dumps({"name": "cli-labelled", "specialty": "art", "labels": labels})
    answer(gaia, "call", "SessionService/RegisterSession", request)
    for option in ("room", "room=5b"):
        assert "cli-labelled" in gaia("sessions", "--label", option, "--specialty", "art")[1]
    assert gaia("sessions", "--label", "room=5c")[1] == "no sessions\n"
    assert "--label" in gaia("sessions", "--label", "=5b")[2]


def test_settings_are_shown_and_changed(gaia: Gaia) -> None:
    assert gaia("settings", "get", "task.max_retries")[1] == "3\n"
    assert gaia("settings", "set", "task.max_retries=4", "task.retry_base=2s")[1] == (
        "task.max_retries=4\ntask.retry_base=2s\n"
    )
    assert re.search(r"^task.max_retries +4 +3 +", gaia("settings")[1], re.M)
    assert re.search(r"^task.max_wait +1m +Longest", gaia("settings")[1], re.M)  # default: 60s
    assert re.search(r"^task.retry_jitter +0.0 +Share", gaia("settings")[1], re.M)  # default: 0
    assert gaia("settings", "set", "task.max_retries=3", "task.retry_base=1s")[0] == 0
    code, _, err = gaia("settings", "set", "task.max_retries=many")
    assert code == 1
    assert err.startswith("error: ")
    assert gaia("settings", "get", "no.such")[0] == 1


def test_an_rpc_that_is_not_served_yet_says_so(gaia: Gaia) -> None:
    for method in NOT_SERVED:
        code, out, err = gaia("call", method.removeprefix("/"), "{}")
        assert (code, out) == (1, "")
        assert err.startswith("error: UNIMPLEMENTED: ")


# --- call -----------------------------------------------------------------------------------------


def test_call_lists_services_and_methods(gaia: Gaia) -> None:
    services = gaia("call")[1].splitlines()
    assert "gaia.task.v1.TaskService" in services
    methods = gaia("call", "TaskService")[1].splitlines()
    assert "gaia.task.v1.TaskService/EnqueueTask" in methods


@pytest.mark.parametrize(
    ("method", "data", "text"),
    [
        ("NoService/Get", "{}", "no service NoService; there are"),
        ("TaskService/Nothing", "{}", "TaskService has no method Nothing; it has EnqueueTask"),
        ("TaskService/GetTask", "{", "the request is no JSON"),
        ("TaskService/GetTask", '{"no": 1}', "GetTaskRequest has no field no; it has taskId, "),
        ("TaskService/GetTask", '{"taskId": [1]}', "taskId: not a string"),
        ("TaskService/GetTask", "[1]", "not a JSON object"),
        ("TaskService/GetTask", '{"taskId": "gone"}', "error: NOT_FOUND: "),
        ("TaskService/EnqueueTask", "{}", "task_type: "),
        ("TaskService/GetTask", "@no-such-file", "No such file"),
    ],
)
def test_a_bad_call_is_one_line(gaia: Gaia, method: str, data: str, text: str) -> None:
    code, out, err = gaia("call", method, data)
    assert code in (1, 2)
    assert text in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""


def test_call_reads_a_file_and_streams_both_ways(gaia: Gaia, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text('{"taskType": "cli.file"}')
    assert answer(gaia, "call", "TaskService/EnqueueTask", f"@{request}")["task"]["taskId"]
    batches = [
        {"batch": {"sourceId": "cli-stream", "sourceEpoch": "1", "sequence": str(number),
                   "studentId": "cli-ben", "appName": "math",
                   "metrics": [{"metricType": "correct", "value": 1.0}]}}
        for number in (1, 2)
    ]  # fmt: skip
    out = gaia("call", "MetricsService/StreamMetrics", json.dumps(batches), "--count", "2")[1]
    assert out.count("BATCH_STATUS_ACCEPTED") == 2


def test_a_stream_ends_quietly_at_the_timeout_or_the_count(gaia: Gaia) -> None:
    code, out, err = gaia("call", "ClusterService/WatchStatus", "{}", "--timeout", "0.5")
    assert (code, err) == (0, "")
    assert '"nodeId"' in out
    code, out, _ = gaia("call", "ClusterService/WatchStatus", '{"intervalMs": 100}', "--count", "2")
    assert code == 0
    assert out.count('"status"') == 2


def test_call_goes_to_a_peer_that_answers(gaia: Gaia, cluster3: Cluster) -> None:
    cluster3.kill("n1")
    assert cluster3.leader()
    stats = answer(gaia, "call", "ClusterService/GetStatus")
    assert stats["nodeId"] == "n2"


def test_a_watch_tells_when_its_connection_is_lost_and_back(gaia: Gaia, cluster3: Cluster) -> None:
    publish_errors(gaia, "cli-class-3", "cli-lost")
    arguments = ["alerts", "watch", "--student", "cli-lost", "--after", "0", "--count", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "gaia_grpc", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        assert "opened" in watching.stdout.readline()
        cluster3.kill("n1", "n2", "n3")
        for part in ("waiting for alerts", "SEQUENCE", "connection lost"):
            assert part in watching.stderr.readline()
        cluster3.heal()
        assert re.match("connected again, to .*; nothing was missed", watching.stderr.readline())
        alert_id = answer(gaia, "alerts", "--student", "cli-lost", "--json")["alerts"][0]["alertId"]
        assert gaia("alerts", "acknowledge", alert_id, "--teacher", "ms-frizzle")[0] == 0
        assert "acknowledged" in watching.stdout.readline()
        assert watching.wait(timeout=10) == 0


# --- a cluster that cannot answer -----------------------------------------------------------------


def test_a_peer_port_is_told(gaia: Gaia, cluster3: Cluster) -> None:
    address = cluster3.peer("n1").peer_address
    for command in (["status"], ["tasks"], ["call"]):
        code, out, err = gaia(*command, "--cluster", address)
        assert (code, out) == (1, "")
        assert err.startswith(f"error: no client port of a peer: {address} ")


def test_reads_without_a_majority_say_nothing_of_changes(gaia: Gaia, cluster3: Cluster) -> None:
    cluster3.kill("n1", "n2")
    code, _, err = gaia("tasks")
    assert code == 1
    assert "no leader with a majority of the peers answered" in err or "no answer within" in err
    assert "nothing was" not in err
    assert "`gaia status`" in err
    code, _, err = gaia("tasks", "enqueue", "grade")
    assert code == 1
    # An attempt that reached the peer when its deadline came leaves the outcome open, and says so.
    assert "nothing was changed" in err or "may have been made or not" in err
    assert "`gaia status`" in err
    _, _, err = gaia("call", "TaskService/GetQueueStats")
    assert "nothing was" not in err
    assert "`gaia status`" in err


# --- locks ----------------------------------------------------------------------------------------


def test_locks_are_shown_and_taken_from_their_holder(gaia: Gaia) -> None:
    assert gaia("locks") == (0, "no locks are held\n", "")
    request = json.dumps({"name": "grades:5b", "holder": "ann", "lease": "60s"})
    lock = answer(gaia, "call", "LockService/AcquireLock", request)["lock"]
    token = lock["fencingToken"]
    code, out, _ = gaia("locks", "list", "--holder", "ann")
    assert code == 0
    assert re.search(rf"^grades:5b +ann +{token} +0 +60 s +\d{{4}}-", out, re.M)
    assert answer(gaia, "locks", "--json")["locks"] == [lock]
    code, out, _ = gaia("locks", "get", "grades:5b")
    assert re.search(rf"^fencing token +{token}$", out, re.M)
    stale = ("locks", "release", "grades:5b", "--holder", "ann", "--token", str(int(token) + 1))
    code, out, err = gaia(*stale)
    assert (code, out) == (1, "")
    assert f"held by ann under the token {token}" in err
    released = gaia("locks", "release", "grades:5b", "--holder", "ann", "--token", token)
    assert released == (0, "nobody holds grades:5b\n", "")
    assert gaia("locks", "get", "grades:5b") == (0, "nobody holds grades:5b\n", "")


def test_classrooms_are_put_listed_shown_and_lose_a_student(gaia: Gaia, cluster3: Cluster) -> None:
    room, student = "room-of-kim", "pupil-4d1e90"
    code, out, err = gaia(
        "classrooms", "put", room, "--name", "Kim's", "--teachers", "kim-9",
        "--students", f"{student}, ben",
    )  # fmt: skip
    assert (code, out) == (0, f"{room}: 1 teachers, 2 students\n"), err
    _, out, _ = gaia("classrooms", "--teacher", "kim-9")
    assert re.search(rf"{room} +Kim's +1 +2 ", out)
    _, out, _ = gaia("classrooms", "show", room)
    assert re.search(rf"students +ben, {student}\n", out)
    publish_errors(gaia, room, student)
    code, out, err = gaia("classrooms", "forget-student", student, "--yes")
    assert code == 0, err
    assert out.splitlines() == [
        f"deleted {student}: 1 windows, 0 records of history, 1 alerts, 1 memberships",
        "every peer has taken a snapshot and cleans its disk; backups are yours to delete",
    ]
    assert answer(gaia, "classrooms", "show", room, "--json")["studentIds"] == ["ben"]
    for node_id in cluster3.node_ids:
        assert cluster3.status(node_id).snapshot_index > 0
    deleted = answer(
        gaia, "classrooms", "forget-student", student, "--yes", "--no-compact", "--json"
    )
    assert int(deleted["compactThroughIndex"]) > 0
    code, _, err = gaia("classrooms", "show", "nowhere")
    assert (code, "NOT_FOUND" in err or "no classroom" in err) == (1, True)
