"""Feature levels: which commands a cluster may use while some of its peers run an older version.

The cluster's level is replicated state. It is raised once all members understand the next one, so a
command that an old peer could not apply never comes into its log.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

FIRST_LEVEL = 1
FEATURE_LEVEL = 3
"""The highest level that this version understands."""

# A kind that is served for the first time gets the next level. Below it apply must say what older
# versions said: UNIMPLEMENTED for those that the contract had at level 1 already.
FIRST_COMMANDS = (
    "found_cluster",
    "advance_time",
    "update_settings",
    # Proposed at level 1 by a peer that knows it, to members that announce level 2: it is
    # what lifts the cluster.
    "raise_feature_level",
    # First command of a cluster that begins from a backup; raises the level itself.
    "restore_cluster",
    "register_session",
    "record_heartbeats",
    "deregister_session",
    "enqueue_tasks",
    "claim_tasks",
    "cancel_claim_wait",
    "extend_claim",
    "complete_tasks",
    "fail_task",
    "release_task",
    "cancel_task",
    "requeue_task",
    "publish_metrics",
    "acknowledge_alert",
    "resolve_alert",
)
SECOND_COMMANDS = ("acquire_lock", "renew_lock", "release_lock", "cancel_lock_wait")
THIRD_COMMANDS: tuple[str, ...] = (
    "put_classroom",
    "delete_student_data",
    "put_task_policy",
    "delete_task_policy",
    "snooze_alert",
    "record_intervention",
    "report_peer",
)
LEVELS: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(FIRST_COMMANDS, FIRST_LEVEL),
        **dict.fromkeys(SECOND_COMMANDS, 2),
        **dict.fromkeys(THIRD_COMMANDS, 3),
    }
)
"""By the name of the command's body: the level that the cluster must have."""


ANNOUNCED_EARLIER: frozenset[str] = frozenset(
    {
        "acquire_lock", "renew_lock", "release_lock", "put_classroom", "delete_student_data",
        "snooze_alert", "record_intervention",
    }
)  # fmt: skip
"""Kinds that older versions knew and refused as UNIMPLEMENTED."""


def required_level(name: str) -> int:
    """The level that a command needs; kinds that are not served are refused at every level."""
    return LEVELS.get(name, FIRST_LEVEL)
