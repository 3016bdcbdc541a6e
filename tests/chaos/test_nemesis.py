"""The plan of a seed, and what makes a run void."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from gaia_grpc.testing.disk import FlippedBytes
from gaia_grpc.testing.injured import InjuredCluster
from tests.chaos.__main__ import main
from tests.chaos.faults import Fault, Stage
from tests.chaos.history import Outcome as CallOutcome
from tests.chaos.nemesis import ALL_FAULTS, BY_KIND, Injected, Nemesis, Plan, Step, draw_plan
from tests.chaos.report import Total, describe
from tests.chaos.run import Outcome
from tests.chaos.witness import Check

KINDS = [fault.kind for fault in ALL_FAULTS]


def test_a_seed_always_gives_the_same_plan() -> None:
    assert draw_plan(5, 60, KINDS) == draw_plan(5, 60, list(reversed(KINDS)))
    assert len({draw_plan(seed, 60, KINDS) for seed in range(20)}) == 20


def test_plans_are_bounded_and_leave_no_kind_out_for_ever() -> None:
    plans = [draw_plan(seed, 60, KINDS) for seed in range(30)]
    assert set.union(*(plan.kinds for plan in plans)) == set(KINDS)
    for plan in plans:
        assert sum(step.wait_s + step.hold_s for step in plan.foreground[:-1]) <= 60
        assert all(BY_KIND[step.kind].background for step in plan.background)
    assert draw_plan(1, 60, ["kill"]).kinds == {"kill"}


class Harmless(Fault):
    """Leaves no trace, unlike every fault that is drawn."""

    kind = "harmless"

    def inject(self) -> None:
        self.stage.unhealthy.add("quorum")

    def heal(self) -> None:
        self.stage.unhealthy.clear()

    def evidence(self) -> str:
        return ""


class Fatal(Harmless):
    """The cluster does not come back."""

    kind = "fatal"

    def heal(self) -> None:
        raise TimeoutError("no leader")


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(InjuredCluster(3), random.Random(1), tmp_path, lambda node_id: None)


def run_faults(stage: Stage, monkeypatch: pytest.MonkeyPatch, *faults: type[Fault]) -> Nemesis:
    for fault in faults:
        monkeypatch.setitem(BY_KIND, fault.kind, fault)
    steps = tuple(Step(fault.kind, 0.0, 0.05, 1) for fault in faults)
    nemesis = Nemesis(Plan(1, steps, ()), stage, 5)
    # Without a started cluster it has no peers: what is well is decided by the word `quorum` alone.
    monkeypatch.setattr(InjuredCluster, "node_ids", ("n1", "n2", "n3"))
    asyncio.run(nemesis.run())
    return nemesis


def test_health_is_noted_while_faults_come_and_go(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    nemesis = run_faults(stage, monkeypatch, Harmless)
    assert [well for _, well in nemesis.health][-2:] == [True, True] or False in {
        well for _, well in nemesis.health
    }
    assert nemesis.injected[0].evidence == ""
    assert "NO TRACE" in str(nemesis.injected[0])


def test_a_cluster_that_does_not_come_back_ends_the_schedule(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    nemesis = run_faults(stage, monkeypatch, Fatal, Harmless)
    assert [fault.kind for fault in nemesis.injected] == ["fatal"]
    assert "no leader" in nemesis.injected[0].error


def outcome(**fields: object) -> Outcome:
    plan = draw_plan(3, 10, KINDS)
    made = Outcome(3, plan, [Injected("kill", "n1", 0.0, 1.0, "exit code -9")])
    made.checks = [Check("reads", detail="5 reads")]
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_a_report_names_seed_faults_calls_and_checks() -> None:
    good = outcome()
    good.calls = {"get_task": Counter({str(CallOutcome.OK): 5})}
    text = describe(good)
    assert good.passed
    for words in ("seed 3: passed", "kill", "exit code -9", "get_task", "5 reads"):
        assert words in text
    total = Total()
    total.add(good)
    assert "no run failed" in total.text()


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"errors": ["void: kill of n1 left no trace"]}, "left no trace"),
        ({"checks": [Check("reads", ["a stale read"])]}, "VIOLATED"),
        ({"checks": [Check("linearizability", not_verified=True)]}, "NOT VERIFIED"),
    ],
)
def test_a_run_fails_that_violates_or_proves_nothing(fields: dict[str, object], word: str) -> None:
    bad = outcome(**fields)
    assert not bad.passed
    assert word in describe(bad)
    total = Total()
    total.add(bad)
    assert "failed seeds: [3]" in total.text()


def test_an_unknown_kind_of_fault_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--kind", "earthquake"])
    assert raised.value.code == 2


def test_flipped_bytes_can_be_put_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = bytes(range(200))
    path.write_bytes(before)
    flipped = FlippedBytes(path, 4, random.Random(2))
    after = path.read_bytes()
    changed = [place for place in range(200) if after[place] != before[place]]
    assert changed == flipped.offsets
    flipped.restore()
    assert path.read_bytes() == before
