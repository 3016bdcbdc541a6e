"""The configurations of a log against a plain dictionary of what is in force where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.errors import InvariantError
from gaia_grpc.raft.membership import (
    NOBODY,
    Configurations,
    flaw_of,
    flaw_of_change,
    others,
)
from gaia_grpc.raft.types import (
    Entry,
    EntryKind,
    HardState,
    Index,
    NodeId,
    Restored,
    SnapshotMeta,
    Term,
)
from tests.support.cluster import configuration, decode_members, entry, members, names

START = members(["n1", "n2", "n3"])
EMPTY = Restored(HardState(), ())


def config_entry(index: int) -> Entry:
    return entry(1, index, b"n%d" % index, EntryKind.CONFIGURATION)


def build(restored: Restored = EMPTY) -> Configurations:
    return Configurations(restored, START, decode_members)


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["append", "configure", "truncate", "compact", "install"]),
              st.integers(0, 9)),
    max_size=30,
)  # fmt: skip


@given(OPERATIONS)
def test_what_is_in_force_is_what_the_log_says_last(operations: list[tuple[str, int]]) -> None:
    held = build()
    log: list[Entry] = []
    base = 0
    in_force = {0: b""}
    """By the index of the log's end."""
    for name, number in operations:
        last = base + len(log)
        if name == "truncate" and last - number > base:
            removed = last - number
            held.truncated(Index(removed))
            del log[removed - base - 1 :]
        elif name == "compact" and last - number > base:
            at = last - number
            held.compacted(SnapshotMeta(Index(at), Term(1), in_force[at]))
            del log[: at - base]
            base = at
        elif name == "install":
            base = last + number + 1
            log.clear()
            data = configuration([f"n{number}"])
            held.installed(SnapshotMeta(Index(base), Term(1), data))
            in_force[base] = data
        else:
            new = config_entry(last + 1) if name == "configure" else entry(1, last + 1)
            assert held.appended([new]) == (name == "configure")
            log.append(new)
            is_configuration = new.kind is EntryKind.CONFIGURATION
            in_force[last + 1] = new.data if is_configuration else in_force[last]
        for index in range(base, base + len(log) + 1):
            assert held.at(Index(index)).data == in_force[index]
        assert held.in_force.data == in_force[base + len(log)]
        expected = START if not held.in_force.data else decode_members(held.in_force.data)
        assert held.in_force.members == expected


def test_a_restart_begins_with_the_snapshot_and_ignores_what_it_stands_for() -> None:
    """Kept entries before the snapshot hold older configurations."""
    entries = (config_entry(3), config_entry(4), entry(1, 5), config_entry(6))
    meta = SnapshotMeta(Index(5), Term(1), b"n4")
    held = build(Restored(HardState(Term(1)), entries, meta))
    assert (held.in_force.data, held.in_force.index) == (b"n6", 6)
    assert (held.before.data, held.before.index) == (b"n4", 5)
    assert held.truncated(Index(6))
    assert held.in_force.data == b"n4"
    assert held.before == held.in_force
    assert not held.truncated(Index(6))


def test_a_snapshot_from_before_the_first_configuration_means_the_initial_one() -> None:
    held = build(Restored(HardState(), (), SnapshotMeta(Index(5), Term(1), b"")))
    assert held.in_force.members == START


def test_a_snapshot_with_another_configuration_is_refused() -> None:
    held = build()
    held.appended([config_entry(1), entry(1, 2)])
    with pytest.raises(InvariantError, match="the snapshot 2 does not hold the configuration 1"):
        held.compacted(SnapshotMeta(Index(2), Term(1), b"n2"))


def test_what_was_in_force_before_a_snapshot_is_not_known() -> None:
    held = build(Restored(HardState(), (), SnapshotMeta(Index(5), Term(1), b"n4")))
    assert held.at(Index(5)).data == b"n4"
    with pytest.raises(InvariantError, match="the configuration at 4 is not known any more"):
        held.at(Index(4))


@pytest.mark.parametrize(
    ("voters", "learners", "flaw"),
    [
        (["n1"], [], None),
        (["n1", "n2"], ["a", "b"], None),
        (["n2", "n1"], [], "sorted"),
        (["n1"], ["b", "a"], "learners must be sorted"),
        (["n1", "n1"], [], "unique"),
        (["", "n1"], [], "not empty"),
        ([], ["n1"], "at least one voter"),
        (["n1"], ["n1"], "not both"),
    ],
)
def test_flaws_of_a_configuration(voters: list[str], learners: list[str], flaw: str | None) -> None:
    found = flaw_of(members(voters, learners))
    assert (found is None) == (flaw is None)
    assert flaw is None or flaw in str(found)


VOTERS = st.lists(st.sampled_from(names(6)), unique=True, min_size=1).map(sorted)


@given(VOTERS, VOTERS)
def test_a_change_is_safe_if_it_touches_one_voter_at_most(
    before: list[NodeId], after: list[NodeId]
) -> None:
    touched = len(set(before) ^ set(after))
    flaw = flaw_of_change(members(before), members(after))
    assert (flaw is None) == (touched <= 1)


def test_a_change_from_nobody_and_to_nonsense() -> None:
    assert flaw_of_change(NOBODY, members(["n1"])) is None
    assert "at least one voter" in str(flaw_of_change(members(["n1"]), NOBODY))


def test_others_are_sorted_and_leave_the_peer_itself_out() -> None:
    assert others(members(["n1", "n3"], ["n2", "n4"]), NodeId("n3")) == ("n1", "n2", "n4")
