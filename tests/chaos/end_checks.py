"""Checks of what is left at the end: registers, streams, sums, hashes, availability, hygiene."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.caller import SETTING
from tests.chaos.history import Call, History
from tests.chaos.linearizability import Model, Operation, State, Verdict, check
from tests.chaos.log_record import LogRecord
from tests.chaos.models import (
    MAX_CLIENTS,
    MAX_OPERATIONS,
    TASK_INITIAL,
    first_operations,
    setting_model,
    setting_operations,
    task_model,
    task_operations,
)
from tests.chaos.streams import Received, published_totals
from tests.chaos.witness import Check

MAX_GAP_S = 5.0
MAX_OPEN_FILES = 400
MAX_MEMORY_BYTES = 600 << 20
LINEARIZABILITY_BUDGET_S = 60.0


def check_linearizable(history: History, initial_setting: State, most_keys: int = 40) -> Check:
    """The search of Wing and Gong on the registers: task by task, and the settings."""
    found = Check("linearizability")
    by_key: dict[str, list[Call]] = {}
    for call in history.of("get_task", "extend_claim", "complete_task"):
        by_key.setdefault(call.key, []).append(call)
    read_keys = [key for key, calls in by_key.items() if any(c.kind == "get_task" for c in calls)]
    objects: list[tuple[str, Sequence[Operation], Model, State]] = [
        (key, task_operations(by_key[key]), task_model, TASK_INITIAL)
        for key in sorted(read_keys)[:most_keys]
    ]
    settings = setting_operations(history.of("get_settings", "update_settings"))
    objects.append((SETTING, settings, setting_model, initial_setting))
    total = 0
    for key, operations, model, initial in objects:
        sample = first_operations(operations, MAX_OPERATIONS)
        total += len(sample)
        verdict = check(sample, model, initial, LINEARIZABILITY_BUDGET_S)
        if verdict is Verdict.VIOLATED:
            found.violations.append(
                f"{key}: no order of its {len(sample)} operations explains them"
            )
        elif verdict is Verdict.NOT_VERIFIED:
            found.not_verified = True
    found.detail = f"{total} operations on {len(objects)} objects, up to {MAX_CLIENTS} at once"
    return found


def check_settings(history: History) -> Check:
    """Versions order all accepted changes: each is given out once, in real time's order."""
    found = Check("settings versions")
    changes = [call for call in history.of("update_settings") if call.is_ok]
    by_version: dict[int, Call] = {}
    for call in changes:
        other = by_version.setdefault(call.answer["version"], call)
        if other.request_id != call.request_id:
            found.violations.append(f"[{call}] and [{other}] made the same version")
        expected = call.argument.get("expected")
        if expected is not None and call.answer["version"] != expected + 1:
            found.violations.append(f"[{call}] was accepted at another version")
    found.detail = f"{len(by_version)} changes"
    return found


def check_streams(
    received: Iterable[Received],
    stored: Mapping[str, Sequence[tuple[int, bytes]]],
    operational: Mapping[str, Sequence[tuple[int, bytes]]] | None = None,
) -> Check:
    """Each subscriber got every event once, in order, the same bytes as every peer has.

    Events about the cluster, which subscribers did not ask for, fill the places between them.
    """
    found = Check("alert streams")
    peers = sorted(stored)
    reference = list(stored[peers[0]])
    others = operational or {}
    sequences = sorted(place for place, _ in (*reference, *others.get(peers[0], ())))
    if sequences != list(range(1, len(sequences) + 1)):
        found.violations.append(f"the events of {peers[0]} have gaps: {sequences}")
    for node_id in peers[1:]:
        same = list(others.get(node_id, ())) == list(others.get(peers[0], ()))
        if list(stored[node_id]) != reference or not same:
            found.violations.append(f"{node_id} has other events than {peers[0]}")
    connects = 0
    for one in received:
        connects += one.connects
        got = [sequence for sequence, _ in one.events]
        if got != sorted(set(got)):
            found.violations.append(f"{one.name} got events twice or out of order: {got}")
        if one.events != reference:
            found.violations.append(
                f"{one.name} got {len(one.events)} events, not the {len(reference)} of the peers"
            )
        found.violations += [f"{one.name}: {refusal}" for refusal in one.refusals]
    found.detail = f"{len(reference)} events, {connects} subscriptions"
    return found


@dataclass(frozen=True, slots=True)
class StudentTotals:
    """What one peer says of one student."""

    accepted: int
    late: int
    window_count: int
    window_sum: float


def check_metrics(
    calls: Sequence[Call], stored: Mapping[str, Mapping[str, StudentTotals]]
) -> Check:
    """What was acknowledged is counted, once; accepted = window + late, on each peer."""
    found = Check("metrics")
    totals, unknown = published_totals(list(calls))
    metrics = 0
    for node_id, students in stored.items():
        for student, total in totals.items():
            seen = students.get(student, StudentTotals(0, 0, 0, 0.0))
            counted = seen.accepted + seen.late
            if total["open"]:
                if counted < total["count"]:
                    found.violations.append(f"{student}: {total} sent, {seen} on {node_id}")
                continue
            metrics += total["count"]
            if counted != total["count"]:
                found.violations.append(f"{student}: {total} sent, {seen} on {node_id}")
            # The window is longer than the run: what was accepted is still in it.
            if seen.window_count != seen.accepted or (
                not seen.late and seen.window_sum != total["sum"]
            ):
                found.violations.append(f"{student}: window {seen} of {total} on {node_id}")
    found.detail = (
        f"{metrics // max(len(stored), 1)} measurements of {len(totals)} students, "
        f"{len(unknown)} batches of unknown outcome"
    )
    return found


def check_log(record: LogRecord, hashes: Mapping[str, str], replay_hash: str) -> Check:
    """No committed entry ever changed, and equal logs gave equal states."""
    found = Check("log and state hash", list(record.violations))
    if len(set(hashes.values())) != 1 or not all(hashes.values()):
        found.violations.append(f"state hashes differ at the same index: {dict(hashes)}")
    if replay_hash and replay_hash not in hashes.values():
        found.violations.append(f"a replay of the log gives {replay_hash}, the peers {hashes}")
    replayed = "equal to a replay" if replay_hash else "log compacted, no replay"
    found.detail = f"{len(record.shown)} entries on {len(hashes)} peers, {replayed}"
    return found


def check_availability(
    history: History, health: Sequence[tuple[float, bool]], most_s: float = MAX_GAP_S
) -> Check:
    """While a connected majority is well, some write is acknowledged every few seconds."""
    found = Check("availability")
    writes = sorted(call.returned_at for call in history if call.is_ok and call.index)
    longest = 0.0
    for began_at, ended_at in _well_spans(health):
        inside = [at for at in writes if began_at < at < ended_at]
        times = [began_at, *inside, ended_at]
        for before, after in itertools.pairwise(times):
            longest = max(longest, after - before)
            if after - before > most_s:
                found.violations.append(
                    f"no write for {after - before:.1f} s from {before:.2f} on with a majority well"
                )
    found.detail = f"{len(writes)} writes, longest gap {longest:.2f} s"
    return found


def _well_spans(health: Sequence[tuple[float, bool]]) -> list[tuple[float, float]]:
    spans = []
    for (at, well), (until, _) in itertools.pairwise(health):
        if well:
            spans.append((at, until))
    merged: list[tuple[float, float]] = []
    for span in spans:
        if merged and merged[-1][1] == span[0]:
            merged[-1] = (merged[-1][0], span[1])
        else:
            merged.append(span)
    return merged


def check_hygiene(
    logs: Mapping[str, str], open_files: Mapping[str, int], memory_bytes: Mapping[str, int]
) -> Check:
    """Peers complain in one line, and hold neither files nor memory without end."""
    found = Check("hygiene")
    for node_id, text in logs.items():
        lines = text.splitlines()
        for number, line in enumerate(lines):
            if line.startswith("Traceback"):
                end = "\n    ".join(lines[number : number + 40])
                found.violations.append(f"{node_id} wrote a traceback:\n    {end}")
                break
        if any(not (character.isprintable() or character in "\n\t") for character in text):
            found.violations.append(f"{node_id} wrote control characters")
    for node_id, count in open_files.items():
        if count > MAX_OPEN_FILES:
            found.violations.append(f"{node_id} had {count} open files")
    for node_id, size_bytes in memory_bytes.items():
        if size_bytes > MAX_MEMORY_BYTES:
            found.violations.append(f"{node_id} took {size_bytes >> 20} MiB")
    most_files = max(open_files.values(), default=0)
    most_mib = max(memory_bytes.values(), default=0) >> 20
    found.detail = f"at most {most_files} open files and {most_mib} MiB a peer"
    return found
