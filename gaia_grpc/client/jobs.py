"""What a handler sees of its attempt, and what it may raise to say how the attempt ends."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any, TypeAlias

from gaia.task.v1 import task_pb2

from gaia_grpc.client.codecs import BYTES, Codec
from gaia_grpc.client.held_claim import HeldClaim
from gaia_grpc.errors import FailedPreconditionError, InvalidArgumentError

CHECKPOINT_TIMEOUT_S = 60.0
MAX_RETRY_DELAY_S = 30 * 86_400.0


class Fail(Exception):  # noqa: N818 - an outcome that a handler names, not a fault
    """Raised by a handler: the task can never succeed. It becomes a dead letter, without retry."""

    def __init__(self, *arguments: object, error_type: str = "") -> None:
        """`error_type` is the kind of the error; by default the name of what it was raised from."""
        super().__init__(*arguments)
        self.error_type = error_type


class Retry(Exception):  # noqa: N818 - as above
    """Raised by a handler: this attempt failed, another may succeed.

    Any other exception does the same; this one is for failures that are expected, and its text is
    stored as it is. When the next attempt comes is up to the cluster (the policy of the type, or
    `task.retry_base`), unless the handler knows better: `Retry("busy", after=30)`.
    """

    def __init__(
        self, *arguments: object, after: float | None = None, error_type: str = ""
    ) -> None:
        """`after` is the wait in seconds, 0 to 30 days; `error_type` as of `Fail`."""
        super().__init__(*arguments)
        if after is not None and not 0 <= after <= MAX_RETRY_DELAY_S:
            raise InvalidArgumentError(f"after is not within 0 to 30 days: {after:g} s")
        self.after = after
        self.error_type = error_type


class Release(Exception):  # noqa: N818 - as above
    """Raised by a handler: another worker should do it; the attempt does not count."""


PermanentTaskError = Fail
"""The name of `Fail` for handlers that were written before it."""


class JobView:
    """What both kinds of jobs have: the claimed task, and whether it is still ours."""

    def __init__(self, claim: HeldClaim, codec: Codec[Any] = BYTES) -> None:
        """Made by the worker."""
        self._claim = claim
        self._codec = codec

    @property
    def task(self) -> task_pb2.Task:
        """The task as it was claimed."""
        return self._claim.task

    @property
    def task_id(self) -> str:
        """Id of the task."""
        return self.task.task_id

    @property
    def task_type(self) -> str:
        """Type of the task."""
        return self.task.task_type

    @property
    def payload(self) -> bytes:
        """Input, as it was enqueued."""
        return self.task.payload

    @property
    def data(self) -> Any:
        """The payload as the handler's codec reads it: `@worker.task("grade", codec=JSON)`.

        Raises:
            UndecodableError: the codec can't; where the handler lets it pass, the task fails
                without a retry.
        """
        return self._codec.decode(self.task.payload)

    @property
    def seconds_left(self) -> float | None:
        """Until the task's deadline, by log time; None where it has none."""
        return self._claim.seconds_left

    @property
    def claim_token(self) -> int:
        """Fencing token of this attempt: with it, side effects can refuse an older one."""
        return self.task.claim_token

    @property
    def attempt(self) -> int:
        """Number of this attempt, from 1; released attempts do not count."""
        return self.task.retry_count + 1

    @property
    def previous_checkpoint(self) -> bytes:
        """What an earlier attempt stored last by `checkpoint`; empty where none did."""
        return self.task.checkpoint

    @property
    def previous_error(self) -> str:
        """Why the attempt before failed; empty on the first."""
        return self.task.last_error

    @property
    def previous_error_type(self) -> str:
        """The kind of that error, such as the name of an exception."""
        return self.task.last_error_type

    @property
    def lost(self) -> bool:
        """Whether the claim is gone: cancelled, expired, past its deadline or with somebody else.

        The result is not sent any more. An `async` handler is cancelled then; a plain function
        runs in a thread, which nothing can stop: it should look here now and then.
        """
        return self._claim.lost.is_set()

    @property
    def lost_because(self) -> str:
        """Why `lost`, for people; empty while it is not."""
        return self._claim.lost_because

    @property
    def stopping(self) -> bool:
        """Whether the worker is stopping: finish soon, or `checkpoint` and raise `Release`."""
        return self._claim.stopping.is_set()

    def raise_if_lost(self) -> None:
        """Raises `StaleClaimError` where the claim is gone."""
        self._claim.raise_if_lost()

    def progress(self, fraction: float) -> None:
        """Tells how far the attempt is, 0 to 1; sent along within about a second."""
        self._claim.set_progress(fraction)


class Job(JobView):
    """The attempt that an `async` handler works on."""

    async def checkpoint(self, data: bytes, *, progress: float | None = None) -> None:
        """Stores `data` (at most 1 MiB) for the next attempt, and renews the claim.

        Raises:
            StaleClaimError: the claim is gone; nothing was stored.
            InvalidArgumentError: it is too large.
            UnavailableError, OutcomeUnknownError: no answer in time; going on without is fine.
        """
        if progress is not None:
            self.progress(progress)
        await self._claim.extend(data, timeout=CHECKPOINT_TIMEOUT_S)


class BlockingJob(JobView):
    """The attempt that a plain function works on, in its thread."""

    def checkpoint(self, data: bytes, *, progress: float | None = None) -> None:
        """As `Job.checkpoint`; blocks until it is stored."""
        self.raise_if_lost()
        if progress is not None:
            self.progress(progress)
        storing = self._claim.extend(data, timeout=CHECKPOINT_TIMEOUT_S)
        asyncio.run_coroutine_threadsafe(storing, self._claim.loop).result()

    def wait(self, seconds: float) -> bool:
        """Sleeps, but not past the loss of the claim; True where it is lost."""
        return self._claim.lost.wait(seconds)


AnyJob: TypeAlias = Job | BlockingJob

current: ContextVar[AnyJob] = ContextVar("gaia_job")


def current_job() -> AnyJob:
    """The job of the handler that runs here, also deep inside of what it calls.

    Raises:
        FailedPreconditionError: no handler runs here.
    """
    job = current.get(None)
    if job is None:
        raise FailedPreconditionError(
            "no handler runs here: call it within a handler, or hand the job on to this thread"
        )
    return job
