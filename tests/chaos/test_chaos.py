"""Two short runs on real peers, and runs against peers with a bug, which must be found.

Long runs: `make chaos MINUTES=n` (`SEED=k` repeats the schedule of one).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from gaia_grpc.testing.process import PROGRAM
from tests.chaos.nemesis import possible_faults
from tests.chaos.report import describe
from tests.chaos.run import Outcome, Run, broken_program

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

FAULT_SECONDS = 13.0
BROKEN_SECONDS = 9.0
RESULTS = Path(".cache/chaos")
NETWORK = ("kill", "pause", "isolate", "one-way out", "cut pair", "lost replies", "delay")
DISKS = ("kill all", "terminate", "slow fsync", "failed fsync", "full disk", "flipped bytes")


async def run_once(
    seed: int,
    kinds: Sequence[str],
    directory: Path,
    *,
    snapshots: bool = False,
    bug: str | None = None,
) -> Outcome:
    """One run; of kinds that this machine can't inject, the others."""
    possible = {fault.kind for fault in possible_faults()[0]}
    chosen = [kind for kind in kinds if kind in possible]
    program = PROGRAM if bug is None else broken_program(bug)
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    seconds = FAULT_SECONDS if bug is None else BROKEN_SECONDS
    return await Run(seed, seconds, kinds=chosen, program=program, snapshots=snapshots).execute(
        directory
    )


@pytest.mark.parametrize(
    ("seed", "kinds"), [(101, NETWORK), (202, DISKS)], ids=["network", "disks"]
)
async def test_histories_under_faults_are_what_was_promised(
    seed: int, kinds: Sequence[str]
) -> None:
    directory = RESULTS / f"test-seed-{seed}"
    snapshots = kinds is NETWORK  # the other run knows the whole log
    outcome = await run_once(seed, kinds, directory, snapshots=snapshots)
    if outcome.is_void:  # nothing is wrong, but a fault met nobody: another seed
        outcome = await run_once(seed + 1, kinds, directory, snapshots=snapshots)
    text = describe(outcome)
    await asyncio.to_thread((directory / "report.txt").write_text, text, encoding="utf-8")
    assert outcome.passed, f"history, logs and report are in {directory}\n{text}"


@pytest.mark.parametrize(
    ("bug", "kinds", "finders"),
    [
        ("stale-reads", ("isolate",), ("linearizability", "reads")),
        ("early-ack", ("kill all",), ("log and state hash", "acked durability")),
    ],
)
async def test_a_broken_peer_is_found(
    bug: str, kinds: Sequence[str], finders: Sequence[str], tmp_path: Path
) -> None:
    outcome = await run_once(3, kinds, tmp_path, bug=bug)
    violated = {check.name for check in outcome.checks if check.violations}
    text = describe(outcome)
    # A peer that finds the log before its commit index changed ends before any check can run.
    # A log or state that contradicts what it was: the peer says so and does not come back.
    stopped_itself = "reason=INVARIANT" in text or "the cluster did not come back" in text
    assert violated & set(finders) or stopped_itself, text
    assert not outcome.passed
