"""The cluster's feature level, and clusters that begin from a backup."""

from __future__ import annotations

import pytest
from gaia.command.v1 import command_pb2

from gaia_grpc.errors import InvalidArgumentError, InvariantError
from gaia_grpc.raft.types import EntryKind
from gaia_grpc.state import feature_levels
from gaia_grpc.state.feature_levels import FEATURE_LEVEL, FIRST_LEVEL, LEVELS
from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.setting_table import ROWS, SINCE_LEVELS
from gaia_grpc.state.stamp import required_feature_level
from tests.state.harness import Log, command
from tests.state.snapshot_checks import check_equal, restored, whole


def founded(level: int) -> Log:
    log = Log(found=False)
    log.do(found_cluster={"cluster_id": "c-test", "feature_level": level})
    return log


def test_each_served_command_has_a_level() -> None:
    assert set(LEVELS) == set(StateMachine()._commands)
    assert set(LEVELS.values()) <= set(range(FIRST_LEVEL, FEATURE_LEVEL + 1))


@pytest.mark.parametrize(("said", "level"), [(0, 1), (1, 1), (2, 2)])
def test_a_cluster_begins_at_the_level_of_its_founding(said: int, level: int) -> None:
    assert StateMachine().feature_level == 1
    machine = founded(said).machine
    assert machine.feature_level == level
    assert restored(whole(machine)).feature_level == level


def test_the_level_is_raised_and_never_lowered() -> None:
    log = founded(0)
    log.do(raise_feature_level={"level": 2})
    assert log.machine.feature_level == 2
    # The next leader may have asked for the same before it saw this.
    log.do(raise_feature_level={"level": 2})
    refusal = log.refuse(raise_feature_level={"level": 1})
    assert (refusal.kind, refusal.reason) == (
        command_pb2.REFUSAL_KIND_FAILED_PRECONDITION,
        "FEATURE_LEVEL",
    )
    assert [(detail.key, detail.value) for detail in refusal.details] == [("feature_level", "2")]
    assert log.machine.feature_level == 2


@pytest.mark.parametrize("name", ["raise_feature_level", "found_cluster"])
def test_a_level_beyond_this_version_stops_the_peer(name: str) -> None:
    beyond = FEATURE_LEVEL + 1
    bodies = {
        "raise_feature_level": {"level": beyond},
        "found_cluster": {"cluster_id": "c", "feature_level": beyond},
    }
    log = Log(found=False)
    with pytest.raises(InvariantError, match="feature level"):
        log.apply(command(**{name: bodies[name]}))


def test_a_command_above_the_clusters_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_levels, "LEVELS", {**LEVELS, "enqueue_tasks": 2})
    log = founded(1)
    body = {"tasks": [{"task_type": "grade", "affinity": "general"}]}
    sent = command(request_id="r1", enqueue_tasks=body)
    refusal = log.apply(sent).refusal
    assert (refusal.kind, refusal.reason) == (
        command_pb2.REFUSAL_KIND_FAILED_PRECONDITION,
        "FEATURE_LEVEL",
    )
    assert [(d.key, d.value) for d in refusal.details] == [("required_feature_level", "2")]
    assert log.stats().enqueued_total == 0
    # Not kept as the outcome of the request: the same is accepted once the cluster has the level.
    log.do(raise_feature_level={"level": 2})
    result = log.apply(sent)
    assert len(result.tasks.tasks) == 1
    assert result.repeated_from_index == 0
    assert required_feature_level(sent.SerializeToString()) == 2


def test_what_is_not_served_is_refused_as_ever_at_each_level() -> None:
    for level in (1, 2):
        refusal = founded(level).refuse(put_classroom={"classroom_id": "5b"})
        assert refusal.kind == command_pb2.REFUSAL_KIND_UNIMPLEMENTED


def test_below_their_level_locks_are_refused_as_older_versions_refused_them() -> None:
    # Byte for byte: the results are part of the chain hash.
    log = founded(1)
    for name in ("acquire_lock", "renew_lock", "release_lock"):
        sent = command(request_id="r", **{name: {"name": "l", "holder": "h"}})
        assert log.apply(sent).refusal == command_pb2.Refusal(
            kind=command_pb2.REFUSAL_KIND_UNIMPLEMENTED,
            reason="UNIMPLEMENTED",
            message=f"{name} is not served yet",
        )
    log.do(raise_feature_level={"level": 2})
    assert log.do(request_id="r", acquire_lock={"name": "l", "holder": "h"}).lock.acquired


def test_below_its_level_a_setting_is_neither_listed_nor_accepted() -> None:
    # What older versions list and refuse is part of the chain hash, too.
    log = founded(1)
    change = {"changes": [{"name": "lock.max_lease", "value": "2h"}]}
    refusal = log.refuse(update_settings=change)
    assert (refusal.field, refusal.message) == (
        "changes[0].name",
        "no setting 'lock.max_lease'",
    )
    lease = {"changes": [{"name": "lock.lease", "value": "20s"}]}
    names = {each.name for each in log.do(update_settings=lease).settings.settings}
    assert len(names) == 31  # those of the first version: none may join them
    assert "lock.lease" in names
    assert "lock.max_lease" not in names
    assert restored(whole(log.machine)).feature_level == 1
    log.do(raise_feature_level={"level": 2})
    settings = log.do(update_settings=change).settings.settings
    assert ("lock.max_lease", "2h") in {(each.name, each.value) for each in settings}
    check_equal(log.machine, restored(whole(log.machine)))


def test_a_log_of_the_first_version_hashes_as_it_did_there() -> None:
    """Else a peer that is upgraded and replays its log differs from the others, and stops."""
    log = Log(("lock.lease", "20s"), level=0)
    log.refuse(acquire_lock={"name": "l", "holder": "h"})
    log.do(update_settings={"changes": [{"name": "task.max_retries", "value": "2"}]})
    found = log.machine.state_hash()
    assert found is not None
    # Settings are part of it with their texts: a new one needs its level in SINCE_LEVELS.
    pinned = "831a6117484a376db063031d16bce55a1bedf8bcab345ff1bb3561a2249b81b0"
    assert found[1].hex() == pinned


def test_settings_that_came_later_are_settings() -> None:
    assert set(SINCE_LEVELS) <= {row[0] for row in ROWS}
    assert set(SINCE_LEVELS.values()) <= set(range(FIRST_LEVEL + 1, FEATURE_LEVEL + 1))


def test_the_level_of_nonsense_is_not_asked_for() -> None:
    for data in (b"", b"\xff\xff"):
        with pytest.raises(InvalidArgumentError):
            required_feature_level(data)


# --- backups


def test_a_restored_cluster_goes_on_under_its_own_id() -> None:
    log = founded(0)
    log.register("w1")
    task_id = log.enqueue()
    log.machine = restored(whole(log.machine))
    source_index = log.machine.applied_index
    log.do(
        restore_cluster={
            "cluster_id": "c-new",
            "source_cluster_id": "c-test",
            "source_index": source_index,
        }
    )
    assert log.machine.cluster_id == "c-new"
    # A peer that does not know the command would stop at it.
    assert log.machine.feature_level == 2
    assert log.task(task_id).task_id == task_id
    check_equal(log.machine, restored(whole(log.machine)))


def test_only_the_backup_it_was_made_of_is_restored_and_only_once() -> None:
    log = founded(0)
    body = {"cluster_id": "c-new", "source_cluster_id": "c-other", "source_index": 1}
    assert log.refuse(restore_cluster=body).reason == "OTHER_CLUSTER"
    body["source_cluster_id"] = "c-test"
    log.do(restore_cluster=body)
    assert log.refuse(restore_cluster=body).reason == "OTHER_CLUSTER"
    assert log.machine.cluster_id == "c-new"


@pytest.mark.parametrize("new_id", ["", "c-test"])
def test_a_restored_cluster_needs_another_id(new_id: str) -> None:
    log = founded(0)
    body = {"cluster_id": new_id, "source_cluster_id": "c-test", "source_index": 1}
    refusal = log.refuse(restore_cluster=body)
    assert refusal.field == "cluster_id"
    assert (log.machine.cluster_id, log.machine.feature_level) == ("c-test", 1)


def test_a_restored_cluster_keeps_a_higher_level() -> None:
    log = founded(2)
    log.apply_raw(EntryKind.NOOP, b"")
    body = {"cluster_id": "c-new", "source_cluster_id": "c-test", "source_index": 2}
    log.do(restore_cluster=body)
    assert log.machine.feature_level == 2
