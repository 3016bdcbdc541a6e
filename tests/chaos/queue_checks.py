"""What must hold of a task queue, found by linear scans over calls and final records.

Promised is: a task that was acknowledged is there, once; a call that failed for sure left nothing;
each attempt at a task has a token that only grows; two attempts never overlap; a completion is
accepted at most once, and only from the current attempt.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from gaia.task.v1 import task_pb2

from tests.chaos.history import Call, History, Outcome
from tests.chaos.witness import Check

CLAIMED = task_pb2.TASK_EVENT_KIND_CLAIMED
ENDS_OF_CLAIMS = (
    task_pb2.TASK_EVENT_KIND_COMPLETED,
    task_pb2.TASK_EVENT_KIND_ATTEMPT_FAILED,
    task_pb2.TASK_EVENT_KIND_CLAIM_EXPIRED,
    task_pb2.TASK_EVENT_KIND_SESSION_LOST,
    task_pb2.TASK_EVENT_KIND_RELEASED,
    task_pb2.TASK_EVENT_KIND_CANCELLED,
)
MAX_HISTORY = 64
"""Events kept of a task: of one with as many, the first ones may be gone."""


def check_durable(history: History, tasks_by_peer: Mapping[str, Sequence[task_pb2.Task]]) -> Check:
    """Every acknowledged task is on every peer, once, as it was acknowledged."""
    check = Check("acked durability")
    acknowledged = history.of("enqueue_task", outcome=Outcome.OK)
    for node_id, tasks in tasks_by_peer.items():
        by_id = {task.task_id: task for task in tasks}
        for call in acknowledged:
            task = by_id.get(call.answer["task_id"])
            if task is None:
                check.violations.append(f"[{call}] is not on {node_id}")
            elif task.payload.decode() != call.argument["payload"]:
                check.violations.append(f"[{call}] has another payload on {node_id}")
    ends = history.of("complete_task", outcome=Outcome.OK)
    for node_id, tasks in tasks_by_peer.items():
        by_id = {task.task_id: task for task in tasks}
        for call in ends:
            task = by_id.get(call.key)
            if task is None or task.state != task_pb2.TASK_STATE_COMPLETED:
                check.violations.append(f"[{call}] is not completed on {node_id}")
            elif task.result.decode() != call.argument["result"]:
                check.violations.append(f"[{call}] has another result on {node_id}")
    check.detail = f"{len(acknowledged)} tasks, {len(ends)} completions, each on every peer"
    return check


def check_once(history: History, tasks: Iterable[task_pb2.Task]) -> Check:
    """Each payload is unique: it is there at most once, and never where its request failed."""
    check = Check("applied once")
    stored: dict[str, list[str]] = {}
    for task in tasks:
        stored.setdefault(task.payload.decode(), []).append(task.task_id)
    attempts: dict[str, list[Call]] = {}
    for call in history.of("enqueue_task"):
        attempts.setdefault(call.argument["payload"], []).append(call)
    for payload, task_ids in stored.items():
        if len(task_ids) > 1:
            check.violations.append(f"{payload} was applied {len(task_ids)} times: {task_ids}")
        if payload not in attempts:
            check.violations.append(f"{payload} is stored, but nobody asked for it")
    failed = 0
    for payload, calls in attempts.items():
        answers = {call.answer["task_id"] for call in calls if call.is_ok}
        if len(answers) > 1:
            check.violations.append(f"{payload} was answered with several tasks: {answers}")
        if all(call.outcome in (Outcome.FAILED, Outcome.REFUSED) for call in calls):
            failed += 1
            if payload in stored:
                check.violations.append(f"{payload} failed for sure, but is stored")
    check.detail = f"{len(attempts)} requests, {failed} failed for sure"
    return check


def check_intervals(tasks: Iterable[task_pb2.Task]) -> Check:
    """By each task's own history: claims never overlap, tokens grow, one completion."""
    check = Check("claim intervals")
    claims = 0
    for task in tasks:
        holding = highest = completions = 0
        complete = len(task.history) < MAX_HISTORY
        for event in task.history:
            if event.kind == CLAIMED:
                claims += 1
                if holding:
                    check.violations.append(
                        f"{task.task_id}: claim {event.claim_token} while {holding} held it"
                    )
                if event.claim_token <= highest:
                    check.violations.append(
                        f"{task.task_id}: token {event.claim_token} after {highest}"
                    )
                holding = highest = event.claim_token
            elif event.kind in ENDS_OF_CLAIMS and event.claim_token:
                if holding and event.claim_token != holding:
                    check.violations.append(
                        f"{task.task_id}: {event.claim_token} ended while {holding} held it"
                    )
                completions += event.kind == task_pb2.TASK_EVENT_KIND_COMPLETED
                holding = 0
        if complete and (task.state == task_pb2.TASK_STATE_COMPLETED) != (completions == 1):
            check.violations.append(f"{task.task_id}: {completions} completions")
    check.detail = f"{claims} claims"
    return check


def check_tokens(history: History) -> Check:
    """By the answers: each token was given out once, and a later one ends all earlier ones."""
    check = Check("fencing tokens")
    granted: dict[tuple[str, int], str] = {}
    claims: dict[str, list[tuple[int, int, Call]]] = {}
    for call in history.of("claim_tasks", outcome=Outcome.OK):
        for task_id, token in call.answer["tasks"]:
            known = granted.setdefault((task_id, token), call.request_id)
            if known != call.request_id:
                check.violations.append(f"[{call}] got claim {token} of {known}")
            claims.setdefault(task_id, []).append((call.index, token, call))
    for task_id, found in claims.items():
        for (_, earlier, first), (_, later, second) in _pairs(found):
            if first.returned_at < second.called_at and earlier > later:
                check.violations.append(f"{task_id}: [{second}] got an older token than [{first}]")
    uses = history.of("extend_claim", "complete_task", "fail_task", "release_task")
    accepted: dict[str, set[tuple[int, str]]] = {}
    for call in uses:
        if not call.is_ok:
            continue
        token = call.argument["claim_token"]
        if call.kind == "complete_task":
            accepted.setdefault(call.key, set()).add((token, call.argument["result"]))
        if call.kind != "extend_claim":
            continue  # an end that was accepted before is accepted again, whoever holds it now
        for _, other, claim in claims.get(call.key, []):
            if other > token and claim.returned_at < call.called_at:
                check.violations.append(f"[{call}] was accepted after [{claim}]")
    for task_id, ends in accepted.items():
        if len(ends) > 1:
            check.violations.append(f"{task_id}: completions {sorted(ends)} were all accepted")
    refused = sum(call.outcome is Outcome.REFUSED for call in uses)
    check.detail = f"{len(granted)} claims, {len(uses)} uses, {refused} refused"
    return check


def _pairs(
    found: list[tuple[int, int, Call]],
) -> Iterable[tuple[tuple[int, int, Call], tuple[int, int, Call]]]:
    by_call = sorted(found, key=lambda claim: claim[2].called_at)
    return itertools.pairwise(by_call)
