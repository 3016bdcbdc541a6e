"""Handing leadership over, and noticing soon when it will not come about (thesis 3.10)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from gaia_grpc.errors import UnavailableError
from gaia_grpc.node.api import NodeStatus, ReplicatedLog
from gaia_grpc.node.engine import Engine
from gaia_grpc.raft.effects import RoleName
from gaia_grpc.raft.types import NO_NODE, NodeId

_LOOK_S = 0.05
"""The core gives a transfer up in silence, so it is looked at this often."""


def furthest_reachable(status: NodeStatus) -> str | None:
    """The voter that a leader should hand over to; None where it does not lead or nobody is there.

    A peer that can't be reached is no choice, however far its log is: waiting for it would only
    delay the end of this one.
    """
    if status.role is not RoleName.LEADER:
        return None
    candidates = [
        (member.match_index, member.node_id)
        for member in status.members
        if member.voter and member.reachable and member.node_id != status.node_id
    ]
    return max(candidates)[1] if candidates else None


async def transfer(
    engine: Engine,
    log: ReplicatedLog,
    target: NodeId,
    breaks: Mapping[NodeId, int],
    timeout_s: float,
) -> NodeStatus:
    """Hands leadership to `target`; `breaks` counts the broken streams to each peer.

    Raises `NotLeaderError`, `InvalidArgumentError`, and `UnavailableError` as soon as it is clear
    that `target` will not lead: it broke off, another peer leads, or the core has given it up.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    breaks_before = breaks.get(target, 0)
    term = engine.core.term
    engine.transfer(target)
    while (status := log.status()).leader_id != target:
        remaining_s = deadline_s - loop.time()
        if (
            remaining_s <= 0
            or engine.stopped
            or breaks.get(target, 0) != breaks_before
            or (status.term == term and engine.core.transfer_to != target)
            or status.leader_id not in (NO_NODE, engine.core.node_id)
        ):
            raise UnavailableError(f"leadership did not go to {target}")
        await log.wait_status(status, timeout_s=min(remaining_s, _LOOK_S))
    return status
