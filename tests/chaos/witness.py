"""The log as witness that a history is linearizable (`faults.md` 2): order, real time, answers.

If every acknowledged operation stands in the one log where its answer says, the log's order agrees
with real time, every answer is what a replay of the log gives at that index, and every read is
explained by some index between what was acknowledged before it began and what began after it
ended, then the log is a linearization.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gaia.cluster.v1 import cluster_pb2
from gaia.command.v1 import command_pb2

from gaia_grpc.state.machine import StateMachine
from tests.chaos.caller import SETTING, milliseconds
from tests.chaos.history import Call, History, Outcome
from tests.chaos.log_record import Identity, LogRecord


@dataclass(slots=True)
class Check:
    """What one check found."""

    name: str
    violations: list[str] = field(default_factory=list)
    detail: str = ""
    """What was looked at, for people."""
    not_verified: bool = False

    @property
    def passed(self) -> bool:
        """Whether everything was looked at and nothing is wrong."""
        return not self.violations and not self.not_verified


def identity_of(call: Call) -> Identity | None:
    """As `log_record.command_identities`; None for calls that leave no identity in the log."""
    if call.request_id:
        return ("request", call.request_id)
    argument = call.argument
    match call.kind:
        case "extend_claim":
            return ("extend", call.key, argument["claim_token"], argument["checkpoint"])
        case "complete_task":
            return ("complete", call.key, argument["claim_token"], argument["result"])
        case "fail_task":
            return ("fail", call.key, argument["claim_token"])
        case "release_task":
            return ("release", call.key, argument["claim_token"])
        case "publish_metrics":
            return ("batch", call.key)
        case _:
            return None


def check_real_time(history: History) -> Check:
    """If A returned before B began, then A's index is less than B's."""
    check = Check("real time")
    indexed = [call for call in history if call.is_ok and call.index]
    indexed.sort(key=lambda call: call.called_at)
    ended = sorted(indexed, key=lambda call: call.returned_at)
    latest: Call | None = None
    place = 0
    for call in indexed:
        while place < len(ended) and ended[place].returned_at < call.called_at:
            if latest is None or ended[place].index > latest.index:
                latest = ended[place]
            place += 1
        if latest is not None and latest.index >= call.index:
            check.violations.append(f"[{latest}] had returned when [{call}] began")
    check.detail = f"{len(indexed)} answers with an index"
    return check


def check_places(history: History, record: LogRecord) -> Check:
    """Acknowledged operations stand where their answers say; definite failures stand nowhere."""
    check = Check("log places")
    identities = record.identities()
    found = 0
    for call in history:
        if not call.is_ok or not call.index:
            continue
        shown = record.shown.get(call.index)
        if shown is not None and shown[0] != call.term:
            check.violations.append(f"[{call}] names term {call.term}, the log has {shown[0]}")
        identity = identity_of(call)
        if identity is None or call.argument.get("waits") or call.index not in record.content:
            continue
        found += 1
        if call.index not in identities.get(identity, ()):
            check.violations.append(f"[{call}] does not stand at its index")
    attempts: dict[Identity, list[Call]] = {}
    for call in history:
        if (identity := identity_of(call)) is not None:
            attempts.setdefault(identity, []).append(call)
    failed = 0
    for identity, calls in attempts.items():
        if all(call.outcome is Outcome.FAILED for call in calls):
            failed += 1
            if identity in identities:
                check.violations.append(f"[{calls[0]}] failed for sure, but is in the log")
    check.detail = (
        f"{found} found at their index, {failed} failures not in the log, "
        f"{record.coverage:.0%} of {record.last_index} entries known"
    )
    return check


@dataclass(frozen=True, slots=True)
class Replay:
    """What a fresh state machine makes of the whole log."""

    results: dict[int, command_pb2.CommandResult]
    state_hash: bytes


def replay(record: LogRecord, hash_index: int) -> Replay:
    """Applies every entry; only where the record is complete. The hash is that of one index."""
    machine = StateMachine()
    results = {}
    for index in range(1, record.last_index + 1):
        entry = record.content[index]
        result = machine.apply(index, entry.kind, entry.data)
        results[index] = command_pb2.CommandResult.FromString(result)
    found = machine.state_hash(hash_index)
    return Replay(results, found[1] if found is not None else b"")


def check_answers(history: History, replayed: Replay) -> Check:
    """Every answer is what the replay gives at its index."""
    check = Check("answers = replay")
    looked = 0
    for call in history:
        if not call.is_ok or call.index not in replayed.results or call.argument.get("waits"):
            continue
        expected = _replayed_answer(call, replayed.results[call.index])
        if expected is None:
            continue
        looked += 1
        given = {name: call.answer[name] for name in expected}
        if given != expected:
            check.violations.append(f"[{call}] should have been answered with {expected}")
    check.detail = f"{looked} answers"
    return check


def _replayed_answer(call: Call, result: command_pb2.CommandResult) -> Mapping[str, object] | None:
    match call.kind:
        case "enqueue_task":
            task = result.tasks.tasks[0]
            return {"task_id": task.task_id}
        case "extend_claim":
            task = result.tasks.tasks[0]
            return {"task_id": task.task_id, "claim_token": task.claim_token}
        case "claim_tasks":
            tasks = [[task.task_id, task.claim_token] for task in result.claim.tasks]
            return {"tasks": tasks}
        case "update_settings":
            settings = result.settings
            return {"version": settings.version, "value": _setting(settings)}
        case _:
            return None


def _setting(settings: cluster_pb2.ClusterSettings) -> int:
    return milliseconds(next(one.value for one in settings.settings if one.name == SETTING))


def check_reads(
    history: History, record: LogRecord, replayed: Replay, initial_setting: tuple[int, int]
) -> Check:
    """Each linearizable read saw the state at some index that it may have seen."""
    check = Check("reads")
    versions = _versions(record, replayed)
    versions.setdefault(SETTING, []).insert(0, (0, initial_setting))
    indexed = sorted(
        (call for call in history if call.is_ok and call.index), key=lambda call: call.returned_at
    )
    ended_at = [call.returned_at for call in indexed]
    floors = _running_max(call.index for call in indexed)
    by_call = sorted(indexed, key=lambda call: call.called_at, reverse=True)
    begun_at = [call.called_at for call in reversed(by_call)]
    ceilings = _running_min(call.index for call in by_call)[::-1]
    reads = history.of("get_task", "get_settings", outcome=Outcome.OK)
    for call in reads:
        before = bisect_left(ended_at, call.called_at)
        floor = floors[before - 1] if before else 0
        behind = bisect_right(begun_at, call.returned_at)
        ceiling = ceilings[behind] - 1 if behind < len(ceilings) else record.last_index
        seen = _seen(call)
        allowed = _values_between(versions.get(call.key, []), floor, ceiling)
        if seen not in allowed:
            check.violations.append(
                f"[{call}] saw {seen}, not one of {allowed} of indexes {floor} to {ceiling}"
            )
    check.detail = f"{len(reads)} reads"
    return check


def check_effects(history: History, record: LogRecord, replayed: Replay) -> Check:
    """A checkpoint that was asked for once is not stored again after a later one (B19).

    A peer may propose a command twice where it lost its leader in between. Most are recognised by
    their request_id; those without one must not undo what came between.
    """
    check = Check("effects once")
    asked = Counter(identity_of(call) for call in history.of("extend_claim"))
    stored: dict[str, list[tuple[int, Identity]]] = {}
    for index, result in sorted(replayed.results.items()):
        command = record.command(index)
        if command is None or command.WhichOneof("body") != "extend_claim":
            continue
        if result.HasField("tasks") and not result.repeated_from_index:
            extend = command.extend_claim
            identity = ("extend", extend.task_id, extend.claim_token, extend.checkpoint.decode())
            stored.setdefault(extend.task_id, []).append((index, identity))
    for task_id, effects in stored.items():
        before: dict[Identity, int] = {}
        last: Identity | None = None
        for index, identity in effects:
            if identity in before and identity != last and asked[identity] == 1:
                check.violations.append(
                    f"{task_id}: {identity} was stored at {before[identity]} and, after others, "
                    f"again at {index}"
                )
            before[identity] = index
            last = identity
    check.detail = f"{sum(map(len, stored.values()))} checkpoints"
    return check


def _seen(call: Call) -> object:
    if call.kind == "get_settings":
        return (call.answer["version"], call.answer["value"])
    return (call.answer["checkpoint"], call.answer["result"])


def _versions(record: LogRecord, replayed: Replay) -> dict[str, list[tuple[int, object]]]:
    """Key to the (index, value) pairs of its register, in the order of the log.

    What was accepted comes from the replay, what was written from the commands.
    """
    found: dict[str, list[tuple[int, object]]] = {}
    for index in sorted(replayed.results):
        result, command = replayed.results[index], record.command(index)
        if command is None or result.HasField("refusal"):
            continue
        match command.WhichOneof("body"):
            case "update_settings":
                pair = (result.settings.version, _setting(result.settings))
                found.setdefault(SETTING, []).append((index, pair))
            case "enqueue_tasks":
                for task in result.tasks.tasks:
                    found.setdefault(task.task_id, []).append((index, ("", None)))
            case "extend_claim":
                extend = command.extend_claim
                if extend.checkpoint:
                    value = (extend.checkpoint.decode(), None)
                    found.setdefault(extend.task_id, []).append((index, value))
            case "complete_tasks":
                outcomes = result.completions.outcomes
                for one, end in zip(command.complete_tasks.completions, outcomes, strict=True):
                    versions = found.setdefault(one.task_id, [])
                    if end.HasField("task") and versions:
                        checkpoint = versions[-1][1][0]  # type: ignore[index]  # a pair, above
                        versions.append((index, (checkpoint, one.result.decode() or None)))
    return found


def _values_between(versions: list[tuple[int, object]], floor: int, ceiling: int) -> list[object]:
    """The value in force at `floor` and all that came up to `ceiling`."""
    first = max(bisect_right(versions, floor, key=lambda version: version[0]) - 1, 0)
    last = bisect_right(versions, ceiling, key=lambda version: version[0])
    return [value for _, value in versions[first:last]]


def _running_max(values: Iterable[int]) -> list[int]:
    found: list[int] = []
    for value in values:
        found.append(max(value, found[-1]) if found else value)
    return found


def _running_min(values: Iterable[int]) -> list[int]:
    found: list[int] = []
    for value in values:
        found.append(min(value, found[-1]) if found else value)
    return found
