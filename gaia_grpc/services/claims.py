"""Claims that wait for a task. See `waits`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from gaia.command.v1 import command_pb2, query_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.services.ingress import Ingress
from gaia_grpc.services.waits import WaitKind, Waits
from gaia_grpc.state.topics import claim_wait

ClaimWaits: TypeAlias = Waits[Sequence[task_pb2.Task]]


def claim_waits(ingress: Ingress) -> ClaimWaits:
    """All claims that wait at this peer."""
    return Waits(ingress, CLAIM_WAIT)


def claim_wait_query(waiter_id: int) -> query_pb2.Query:
    """Asks what became of a waiting claim."""
    return query_pb2.Query(claim_wait=query_pb2.ClaimWaitQuery(waiter_id=waiter_id))


def _outcome(result: query_pb2.QueryResult) -> Sequence[task_pb2.Task] | None:
    return None if result.claim_wait.waiting else result.claim_wait.tasks


def _cancellation(waiter_id: int) -> command_pb2.Command:
    body = command_pb2.CancelClaimWait(waiter_id=waiter_id)
    return command_pb2.Command(cancel_claim_wait=body)


CLAIM_WAIT: WaitKind[Sequence[task_pb2.Task]] = WaitKind(
    name="claim",
    waiter_id=lambda result: result.claim.waiter_id,
    topic=claim_wait,
    outcome=_outcome,
    cancellation=_cancellation,
)
