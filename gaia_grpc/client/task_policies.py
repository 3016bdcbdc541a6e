"""Task policies, typed: how tasks of a type are tried again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from gaia.task.v1 import task_pb2

from gaia_grpc.client.connection import Connection
from gaia_grpc.client.resources import LINEARIZABLE, Consistency
from gaia_grpc.client.task_specs import optional_duration


class TaskPolicies:
    """The part of `TasksApi` about policies."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def put_policy(
        self,
        task_type: str,
        *,
        max_retries: int | None = None,
        retry_base: float | None = None,
        retry_max_delay: float | None = None,
        retry_jitter: float | None = None,
        claim_timeout: float | None = None,
        final_error_types: Sequence[str] = (),
        retention: float | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> task_pb2.PutTaskPolicyResponse:
        """Gives tasks of a type a policy of their own, in place of the one that they had.

        Args:
            task_type: the type.
            max_retries: of tasks that name no number themselves.
            retry_base: seconds before the first retry; each further wait is twice as long.
            retry_max_delay: longest wait before a retry, in seconds.
            retry_jitter: share of a wait, 0 to 1, by which it may be shorter.
            claim_timeout: seconds after which a claim that nobody extends is taken back.
            final_error_types: failures of these kinds (`Retry(..., error_type=...)`, or the
                name of the exception) are final.
            retention: seconds for which finished tasks are kept.
            request_id: makes a repeated call safe; one is made where it is empty.
            timeout: seconds for the whole call.

        What is None is taken from the settings (`task.max_retries`, ...).
        """
        policy = task_pb2.TaskPolicy(
            task_type=task_type,
            max_retries=max_retries,
            retry_base=optional_duration(retry_base),
            retry_max_delay=optional_duration(retry_max_delay),
            retry_jitter=retry_jitter,
            claim_timeout=optional_duration(claim_timeout),
            final_error_types=final_error_types,
            retention=optional_duration(retention),
        )
        return await self._connection.call(
            lambda peer: peer.tasks.PutTaskPolicy,
            task_pb2.PutTaskPolicyRequest(policy=policy, request_id=request_id),
            timeout=timeout,
        )

    async def delete_policy(
        self, task_type: str, *, request_id: str = "", timeout: float | None = None
    ) -> task_pb2.DeleteTaskPolicyResponse:
        """Lets the settings hold for the type again; `NotFoundError` where they do."""
        return await self._connection.call(
            lambda peer: peer.tasks.DeleteTaskPolicy,
            task_pb2.DeleteTaskPolicyRequest(task_type=task_type, request_id=request_id),
            timeout=timeout,
        )

    async def policies(
        self, *, page_size: int = 1_000, consistency: Consistency = LINEARIZABLE
    ) -> AsyncIterator[task_pb2.TaskPolicy]:
        """All policies in the order of their types, page by page."""
        request = task_pb2.ListTaskPoliciesRequest(page_size=page_size, consistency=consistency)
        while True:
            page = await self._connection.call(lambda peer: peer.tasks.ListTaskPolicies, request)
            for policy in page.policies:
                yield policy
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
