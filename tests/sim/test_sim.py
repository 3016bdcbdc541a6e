"""Seeded simulations of whole clusters (faults 5.1): safety at every step, then progress.

`make sim SEEDS=n` runs more of them, `make sim SEED=k` one with everything it met.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from gaia_grpc.raft import following, handover, leading
from gaia_grpc.raft.core import Core
from gaia_grpc.raft.durability import Durability
from gaia_grpc.raft.messages import AppendResponse
from gaia_grpc.raft.types import Index, NodeId, Term
from tests.sim.__main__ import main
from tests.sim.clients import Clients
from tests.sim.identity import Membership
from tests.sim.invariants import _check_overlap
from tests.sim.machine import Machine
from tests.sim.options import Options
from tests.sim.runner import (
    DEFAULT_SEEDS,
    SimulationFailedError,
    Tally,
    regression_seeds,
    run_seed,
    run_seeds,
    trace_in_another_process,
    try_seed,
)
from tests.sim.simulation import Simulation
from tests.support.checkers import ViolationError

pytestmark = pytest.mark.sim

JOBS = 2


@pytest.mark.timeout(600)
def test_no_fault_breaks_safety_and_healing_brings_progress() -> None:
    """Also: everything that a set of seeds should meet did happen, and traces repeat."""
    tally = run_seeds(sorted({*regression_seeds(), *range(DEFAULT_SEEDS)}), JOBS)
    assert [outcome.failure for outcome in tally.failures] == []
    assert tally.seeds >= DEFAULT_SEEDS
    assert tally.missing() == []


def test_a_seed_always_gives_the_same_trace() -> None:
    """Also in other processes, with other hash seeds: nothing depends on the order of a set."""
    here = run_seed(7).trace
    assert run_seed(7).trace == here
    assert trace_in_another_process(7, "1") == here
    assert trace_in_another_process(7, "2") == here
    assert run_seed(8).trace != here


def test_a_failed_run_names_its_seed_and_what_it_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(clients: Clients) -> None:
        raise ViolationError("broken on purpose")

    monkeypatch.setattr(Clients, "run", broken)
    with pytest.raises(
        SimulationFailedError, match=r"broken on purpose\nSEED=3\n  options: peers="
    ):
        run_seed(3)
    assert main(["--seed", "3"]) == 1
    assert main(["--seeds", "2", "--jobs", "1"]) == 1


def test_options_come_from_the_seed_alone() -> None:
    assert Options.from_seed(5) == Options.from_seed(5)
    assert len({Options.from_seed(seed) for seed in range(20)}) == 20


def test_what_never_happened_fails_a_large_run() -> None:
    tally = Tally()
    for seed in range(3):
        tally.add(try_seed(seed))
    tally.seeds = 500
    assert "transfers_needless" in tally.missing()


# --- the simulation finds bugs --------------------------------------------------------------------


def acknowledge_at_once(core: Core, to_node: NodeId, match_index: Index, round_seen: int) -> None:
    answer = AppendResponse(True, match_index, Index(0), Index(0), Term(0), round_seen)
    core.send(to_node, answer)


def never_end_a_transfer(*arguments: object, **named: object) -> None:
    """No report ever frees the progress of a follower that waits for a snapshot."""


def never_wait_for_the_disk(durability: Durability, envelope: object, last_index: Index) -> bool:
    return False


def load_without_sessions(content: bytes) -> Machine:
    machine = LOAD(content)
    machine.sessions.clear()
    return machine


LOAD = Machine.load


@pytest.mark.parametrize(
    ("owner", "name", "bug", "expected"),
    [
        (following, "_acknowledge", acknowledge_at_once, "acknowledge"),
        (Durability, "defer", never_wait_for_the_disk, "on disk|before"),
        (leading, "report_snapshot", never_end_a_transfer, "after healing"),
        (handover, "flaw_of_change", lambda before, after: None, "at once|overlap"),
        (Machine, "load", staticmethod(load_without_sessions), "differs"),
    ],
)
def test_a_bug_is_found_within_sixty_seeds(
    owner: object,
    name: str,
    bug: Callable[..., object],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`python -m tests.sim.teeth` does the same with all mutants of the core."""
    monkeypatch.setattr(owner, name, bug)
    outcomes = (try_seed(seed) for seed in range(60))
    found = next((outcome.failure for outcome in outcomes if outcome.failure), "")
    assert re.search(expected, found)


# --- its own parts --------------------------------------------------------------------------------


def test_two_configurations_overlap_where_one_voter_differs_only() -> None:
    def voters(*names: str) -> Membership:
        return Membership(names)

    _check_overlap(voters("a", "b", "c"), voters("a", "b", "c", "d"))
    _check_overlap(voters("a", "b"), voters("a"))
    for one, other in ((("a", "b", "c"), ("a", "d", "e")), (("a",), ("a", "b", "c"))):
        with pytest.raises(ViolationError, match="overlap"):
            _check_overlap(voters(*one), voters(*other))


def test_the_fault_budget_spares_the_last_good_majority() -> None:
    quiet = Options.from_seed(0).quiet()
    world = Simulation(0, replace(quiet, peers=3, turns=0))
    assert world.disks.may_lose("n1.1")
    world.disks.lose(world.peers[NodeId("n1")])
    assert not world.disks.may_lose("n1.1")
    assert not world.disks.may_lose("n2.1")
    assert not world.disks.bears(Membership(("n1.1", "n2.1")))
