"""TaskService: the queue with exactly-once claims."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from gaia.command.v1 import command_pb2, query_pb2
from gaia.task.v1 import task_pb2, task_pb2_grpc

from gaia_grpc.services.claims import ClaimWaits, claim_wait_query
from gaia_grpc.services.deadlines import Context, wait_timeout_s
from gaia_grpc.services.error_table import refusal_error
from gaia_grpc.services.ingress import Ingress
from gaia_grpc.services.listing import read_page
from gaia_grpc.services.state_watch import watch_tasks
from gaia_grpc.services.task_specs import milliseconds, task_spec

MICRO = 1_000_000


class TaskService(task_pb2_grpc.TaskServiceServicer):
    """See `protos/gaia/task/v1/task.proto`."""

    def __init__(self, ingress: Ingress, waits: ClaimWaits) -> None:
        self._ingress = ingress
        self._waits = waits

    async def EnqueueTask(
        self, request: task_pb2.EnqueueTaskRequest, context: Context
    ) -> task_pb2.EnqueueTaskResponse:
        """Adds one task; with a known idempotency_key it is the one that exists."""
        self._ingress.check(request)
        body = command_pb2.EnqueueTasks(tasks=[task_spec(request)])
        outcome = await self._ingress.submit(
            context,
            command_pb2.Command(enqueue_tasks=body),
            request.request_id,
            idempotent=bool(request.idempotency_key),
        )
        results = outcome.result.tasks
        return task_pb2.EnqueueTaskResponse(
            task=results.tasks[0],
            existing=results.existing[0],
            term=outcome.term,
            applied_index=outcome.index,
        )

    async def BatchEnqueueTasks(
        self, request: task_pb2.BatchEnqueueTasksRequest, context: Context
    ) -> task_pb2.BatchEnqueueTasksResponse:
        """Adds many tasks: all or none."""
        self._ingress.check(request)
        body = command_pb2.EnqueueTasks(tasks=[task_spec(task) for task in request.tasks])
        outcome = await self._ingress.submit(
            context,
            command_pb2.Command(enqueue_tasks=body),
            request.request_id,
            idempotent=all(task.idempotency_key for task in request.tasks),
        )
        return task_pb2.BatchEnqueueTasksResponse(
            tasks=outcome.result.tasks.tasks, term=outcome.term, applied_index=outcome.index
        )

    async def ClaimTasks(
        self, request: task_pb2.ClaimTasksRequest, context: Context
    ) -> task_pb2.ClaimTasksResponse:
        """Takes tasks, or waits for them."""
        self._ingress.check(request)
        body = command_pb2.ClaimTasks(
            session_id=request.session_id,
            max_tasks=request.max_tasks or 1,
            task_types=request.task_types,
            include_unmatched=request.include_unmatched,
        )
        # A retry has less time to wait, and a peer that it reaches may not know of incarnations: it
        # is the same request all the same.
        digest_body = command_pb2.Command(claim_tasks=body)
        body.wait_ms = milliseconds(request.wait)
        body.incarnation = request.incarnation
        command = command_pb2.Command(claim_tasks=body)
        outcome = await self._waits.submit(
            self._ingress.submit(context, command, request.request_id, digest_body=digest_body)
        )
        claim = outcome.result.claim
        tasks: Sequence[task_pb2.Task] = claim.tasks
        if claim.waiter_id:
            timeout_s = wait_timeout_s(context, self._ingress.consensus, body.wait_ms)
            query = claim_wait_query(claim.waiter_id)
            tasks = await self._waits.wait(claim.waiter_id, query, timeout_s) or ()
        return task_pb2.ClaimTasksResponse(
            tasks=tasks, term=outcome.term, applied_index=outcome.index
        )

    async def ExtendClaim(
        self, request: task_pb2.ExtendClaimRequest, context: Context
    ) -> task_pb2.ExtendClaimResponse:
        """Renews a claim."""
        self._ingress.check(request)
        body = command_pb2.ExtendClaim(
            task_id=request.task_id,
            claim_token=request.claim_token,
            session_id=request.session_id,
            progress_micro=round(request.progress * MICRO),
            checkpoint=request.checkpoint,
        )
        command = command_pb2.Command(extend_claim=body)
        # Storing a checkpoint again could undo one that came between, so repetitions must be told
        # apart, also those of forwarding: without a client's id ingress gives one. A renewal alone
        # may come twice, and every claim sends many: nothing is kept for it.
        renewal = not request.checkpoint
        request_id = "" if renewal else request.request_id
        outcome = await self._ingress.submit(context, command, request_id, idempotent=renewal)
        return task_pb2.ExtendClaimResponse(
            task=outcome.result.tasks.tasks[0], term=outcome.term, applied_index=outcome.index
        )

    async def CompleteTask(
        self, request: task_pb2.CompleteTaskRequest, context: Context
    ) -> task_pb2.CompleteTaskResponse:
        """Ends a task; a completion that was accepted before is accepted again."""
        self._ingress.check(request)
        completion = task_pb2.Completion(
            task_id=request.task_id, claim_token=request.claim_token, result=request.result
        )
        body = command_pb2.CompleteTasks(session_id=request.session_id, completions=[completion])
        command = command_pb2.Command(complete_tasks=body)
        outcome = await self._ingress.submit(context, command, idempotent=True)
        one = outcome.result.completions.outcomes[0]
        if one.HasField("refusal"):
            raise refusal_error(one.refusal)
        return task_pb2.CompleteTaskResponse(
            task=one.task, term=outcome.term, applied_index=outcome.index
        )

    async def BatchCompleteTasks(
        self, request: task_pb2.BatchCompleteTasksRequest, context: Context
    ) -> task_pb2.BatchCompleteTasksResponse:
        """Ends many tasks; each has an outcome of its own."""
        self._ingress.check(request)
        body = command_pb2.CompleteTasks(
            session_id=request.session_id, completions=request.completions
        )
        command = command_pb2.Command(complete_tasks=body)
        outcome = await self._ingress.submit(context, command, idempotent=True)
        results = outcome.result.completions.outcomes
        return task_pb2.BatchCompleteTasksResponse(
            outcomes=[
                completion_outcome(completion.task_id, one)
                for completion, one in zip(request.completions, results, strict=True)
            ],
            term=outcome.term,
            applied_index=outcome.index,
        )

    async def FailTask(
        self, request: task_pb2.FailTaskRequest, context: Context
    ) -> task_pb2.FailTaskResponse:
        """Reports a failed attempt."""
        self._ingress.check(request)
        body = command_pb2.FailTask(
            task_id=request.task_id,
            claim_token=request.claim_token,
            session_id=request.session_id,
            error=request.error,
            permanent=request.permanent,
            error_type=request.error_type,
        )
        if request.HasField("retry_delay"):
            body.retry_delay_ms = milliseconds(request.retry_delay)
        command = command_pb2.Command(fail_task=body)
        outcome = await self._ingress.submit(context, command, idempotent=True)
        return task_pb2.FailTaskResponse(
            task=outcome.result.tasks.tasks[0], term=outcome.term, applied_index=outcome.index
        )

    async def ReleaseTask(
        self, request: task_pb2.ReleaseTaskRequest, context: Context
    ) -> task_pb2.ReleaseTaskResponse:
        """Gives a task back."""
        self._ingress.check(request)
        body = command_pb2.ReleaseTask(
            task_id=request.task_id,
            claim_token=request.claim_token,
            session_id=request.session_id,
        )
        command = command_pb2.Command(release_task=body)
        outcome = await self._ingress.submit(context, command, idempotent=True)
        return task_pb2.ReleaseTaskResponse(
            task=outcome.result.tasks.tasks[0], term=outcome.term, applied_index=outcome.index
        )

    async def CancelTask(
        self, request: task_pb2.CancelTaskRequest, context: Context
    ) -> task_pb2.CancelTaskResponse:
        """Calls a task off."""
        self._ingress.check(request)
        body = command_pb2.CancelTask(task_id=request.task_id, reason=request.reason)
        command = command_pb2.Command(cancel_task=body)
        outcome = await self._ingress.submit(context, command, request.request_id)
        return task_pb2.CancelTaskResponse(
            task=outcome.result.tasks.tasks[0], term=outcome.term, applied_index=outcome.index
        )

    async def RequeueTask(
        self, request: task_pb2.RequeueTaskRequest, context: Context
    ) -> task_pb2.RequeueTaskResponse:
        """Makes a dead task pending again."""
        self._ingress.check(request)
        body = command_pb2.RequeueTask(
            task_id=request.task_id, include_dependents=request.include_dependents
        )
        command = command_pb2.Command(requeue_task=body)
        outcome = await self._ingress.submit(context, command, request.request_id)
        results = outcome.result.tasks
        return task_pb2.RequeueTaskResponse(
            task=results.tasks[0],
            term=outcome.term,
            applied_index=outcome.index,
            requeued_dependents=results.requeued_dependents,
        )

    async def PutTaskPolicy(
        self, request: task_pb2.PutTaskPolicyRequest, context: Context
    ) -> task_pb2.PutTaskPolicyResponse:
        """Says how tasks of a type are tried again."""
        self._ingress.check(request)
        request.policy.ClearField("update_time")
        command = command_pb2.Command(put_task_policy=request.policy)
        outcome = await self._ingress.submit(context, command, request.request_id)
        return task_pb2.PutTaskPolicyResponse(
            policy=outcome.result.task_policy, term=outcome.term, applied_index=outcome.index
        )

    async def DeleteTaskPolicy(
        self, request: task_pb2.DeleteTaskPolicyRequest, context: Context
    ) -> task_pb2.DeleteTaskPolicyResponse:
        """Takes that back."""
        self._ingress.check(request)
        body = command_pb2.DeleteTaskPolicy(task_type=request.task_type)
        command = command_pb2.Command(delete_task_policy=body)
        outcome = await self._ingress.submit(context, command, request.request_id)
        return task_pb2.DeleteTaskPolicyResponse(
            policy=outcome.result.task_policy, term=outcome.term, applied_index=outcome.index
        )

    async def ListTaskPolicies(
        self, request: task_pb2.ListTaskPoliciesRequest, context: Context
    ) -> task_pb2.ListTaskPoliciesResponse:
        """Reads a page of policies."""
        self._ingress.check(request)
        query = query_pb2.Query(list_task_policies=request)
        page: task_pb2.ListTaskPoliciesResponse = await read_page(self._ingress, context, query)
        return page

    async def GetTask(
        self, request: task_pb2.GetTaskRequest, context: Context
    ) -> task_pb2.GetTaskResponse:
        """Reads one task."""
        self._ingress.check(request)
        query = query_pb2.Query(get_task=request)
        return (await self._ingress.query(context, query, request.consistency)).get_task

    async def ListTasks(
        self, request: task_pb2.ListTasksRequest, context: Context
    ) -> task_pb2.ListTasksResponse:
        """Reads a page of tasks."""
        self._ingress.check(request)
        query = query_pb2.Query(list_tasks=request)
        page: task_pb2.ListTasksResponse = await read_page(self._ingress, context, query)
        return page

    async def GetQueueStats(
        self, request: task_pb2.GetQueueStatsRequest, context: Context
    ) -> task_pb2.GetQueueStatsResponse:
        """Counts tasks by state."""
        self._ingress.check(request)
        query = query_pb2.Query(get_queue_stats=request)
        return (await self._ingress.query(context, query, request.consistency)).get_queue_stats

    async def WatchTasks(
        self, request: task_pb2.WatchTasksRequest, context: Context
    ) -> AsyncIterator[task_pb2.WatchTasksResponse]:
        """Sends the selected tasks and then each change."""
        self._ingress.check(request)
        async with aclosing(watch_tasks(self._ingress, request)) as messages:
            async for message in messages:
                yield message

    async def ExplainAssignment(
        self, request: task_pb2.ExplainAssignmentRequest, context: Context
    ) -> task_pb2.ExplainAssignmentResponse:
        """Says per session why it would or would not get the task."""
        self._ingress.check(request)
        request.page_size = self._ingress.page_size(request.page_size)
        query = query_pb2.Query(explain_assignment=request)
        return (await self._ingress.query(context, query, request.consistency)).explain_assignment


def completion_outcome(
    task_id: str, one: command_pb2.CompletionResult
) -> task_pb2.CompletionOutcome:
    """One item of the answer to a batch."""
    if one.HasField("refusal"):
        return task_pb2.CompletionOutcome(
            task_id=task_id, reason=one.refusal.reason, message=one.refusal.message
        )
    return task_pb2.CompletionOutcome(task_id=task_id, completed=True)
