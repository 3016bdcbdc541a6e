"""One claim as its worker holds it: renewed in time, and given up the moment that it is lost.

Three things tell that a claim is gone: a refused renewal, a watch on the task (opened for attempts
that take longer than a moment, so that cancelling a task interrupts its handler at once), and a
heartbeat whose answer counts fewer claims than the worker thinks it holds. None of them decides
anything but when the handler hears of it: the token decides in the log.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from gaia.task.v1 import task_pb2

from gaia_grpc.client.client import Client
from gaia_grpc.errors import (
    FailedPreconditionError,
    GaiaError,
    InvalidArgumentError,
    NotFoundError,
    StaleClaimError,
    UnimplementedError,
)

DEFAULT_CLAIM_S = 600.0
SHORTEST_CLAIM_S = 0.03
SHORTEST_CALL_S = 5.0
PROGRESS_EVERY_S = 1.0
"""Progress is for people: at most this often it costs a log entry."""
DEADLINE_PAUSE_S = 0.25
"""Between looks at a deadline that has passed here and not yet in the log, whose clock may lag."""
WATCH_AFTER_S = 1.0
"""Attempts shorter than this end before anyone could call them off; they cost no stream."""


class HeldClaim:
    """A claimed task; lives on the loop, `lost` and `stopping` may be read by any thread."""

    def __init__(
        self,
        client: Client,
        task: task_pb2.Task,
        *,
        draw: Callable[[], float],
        on_lost: Callable[[str], None],
        on_extended: Callable[[], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        """Use within a running loop. `draw` gives a random number in [0, 1)."""
        self.loop = asyncio.get_running_loop()
        self.task = task
        self.lost = threading.Event()
        self.lost_because = ""
        self.stopping = threading.Event()
        self.victim: asyncio.Future[Any] | None = None
        """What is cancelled when the claim is lost."""
        self._client = client
        self._draw = draw
        self._on_lost = on_lost
        self._on_extended = on_extended
        self._on_error = on_error
        self._progress = 0.0
        self._told_progress = 0.0
        self._to_tell = asyncio.Event()
        self._extending = asyncio.Lock()
        self.claim_s = claim_seconds(task)
        left_s = seconds_to_deadline(task)
        self._deadline_s = None if left_s is None else self.loop.time() + left_s

    def lose(self, why: str) -> None:
        """Interrupts the handler or its report; nothing is sent with this token from here on."""
        if self.lost.is_set():
            return
        self.abandon(why)
        self._on_lost(why)
        if self.victim is not None:
            self.victim.cancel()

    def abandon(self, why: str) -> None:
        """Gives the claim up of our own accord: the handler finds it lost."""
        self.lost_because = why
        self.lost.set()

    def raise_if_lost(self) -> None:
        """Raises `StaleClaimError` where the claim is gone."""
        if self.lost.is_set():
            raise StaleClaimError(
                f"the claim {self.task.claim_token} on task {self.task.task_id} is lost "
                f"({self.lost_because}): stop here, its result would be refused",
                metadata={"task_id": self.task.task_id},
            )

    def set_progress(self, fraction: float) -> None:
        """Keeps it for the next renewal, which comes soon; from any thread."""
        if not 0.0 <= fraction <= 1.0:
            raise InvalidArgumentError(f"progress is not within 0 to 1: {fraction:g}")
        self._progress = fraction
        if not self.lost.is_set():
            self.loop.call_soon_threadsafe(self._to_tell.set)

    async def extend(self, checkpoint: bytes = b"", *, timeout: float) -> None:
        """Renews the claim, one call after another: a later checkpoint must win.

        Raises:
            StaleClaimError: the claim is gone; the handler was told already.
            GaiaError: the call got no answer, or the checkpoint was refused.
        """
        async with self._extending:
            self.raise_if_lost()
            self._to_tell.clear()
            progress = self._told_progress = self._progress
            try:
                await self._client.tasks.extend(
                    self.task, progress=progress, checkpoint=checkpoint, timeout=timeout
                )
            except (FailedPreconditionError, NotFoundError) as error:
                self.lose(error.message)
                self.raise_if_lost()
            self._on_extended()

    async def verify(self) -> None:
        """Finds out whether the claim is still held; errors on the way leave that open."""
        try:
            await self.extend(timeout=SHORTEST_CALL_S)
        except StaleClaimError:
            return
        except GaiaError as error:
            self._on_error(error)

    async def keep(self) -> None:
        """Renews at about a third of the claim's time and when there is progress; ends where lost.

        The third leaves two more tries; the jitter keeps workers apart that claimed together.
        """
        pause_s = self._third()
        while True:
            try:
                async with asyncio.timeout(pause_s):
                    await self._news()
            except TimeoutError:
                pass
            try:
                await self.extend(timeout=max(self.claim_s / 3, SHORTEST_CALL_S))
                pause_s = self._third()
            except StaleClaimError as error:
                self._on_error(error)
                return
            except GaiaError as error:
                self._on_error(error)
                pause_s = self._third() / 3
            await asyncio.sleep(min(PROGRESS_EVERY_S, self.claim_s / 10))

    @property
    def seconds_left(self) -> float | None:
        """Until the task's deadline; None where it has none."""
        if self._deadline_s is None:
            return None
        return max(self._deadline_s - self.loop.time(), 0.0)

    async def expect_deadline(self) -> None:
        """Loses the claim once the cluster has ended it at the task's deadline.

        The log decides: its clock stands still while nobody leads, and a task that is completed
        before it gets there is completed.
        """
        while (left_s := self.seconds_left) is not None and not self.lost.is_set():
            await asyncio.sleep(max(left_s, DEADLINE_PAUSE_S))
            if not self.seconds_left:
                await self.verify()

    async def _news(self) -> None:
        """Waits for progress that no renewal has told yet: one with a checkpoint may have."""
        while True:
            await self._to_tell.wait()
            if self._progress != self._told_progress:
                return
            self._to_tell.clear()

    def _third(self) -> float:
        return self.claim_s / 3 * (0.8 + 0.2 * self._draw())

    async def watch(self) -> None:
        """Loses the claim as soon as the cluster says so; returns where it can't be watched.

        A watch begins with the task as it is, so what happened before it opened is seen too.
        """
        await asyncio.sleep(WATCH_AFTER_S)
        try:
            async with self._client.tasks.watch(task_id=self.task.task_id) as changes:
                async for change in changes:
                    for task in (*change.tasks, change.task):
                        if why := why_lost(self.task, task):
                            self.lose(why)
                            return
        except UnimplementedError:
            return
        except GaiaError as error:
            self._on_error(error)


def why_lost(held: task_pb2.Task, now: task_pb2.Task) -> str:
    """Why the state `now` ends the claim on `held`; empty where it does not.

    A peer that lags may still tell of changes from before the claim: they have older tokens.
    """
    if now.claim_token > held.claim_token:
        return f"it was claimed again, by {now.claimed_by or 'somebody else'}"
    alive = (task_pb2.TASK_STATE_CLAIMED, task_pb2.TASK_STATE_COMPLETED)
    if now.claim_token < held.claim_token or now.state in alive:
        return ""
    state = task_pb2.TaskState.Name(now.state).removeprefix("TASK_STATE_")
    why = f" ({now.last_error})" if now.state == task_pb2.TASK_STATE_FAILED else ""
    return f"the task is {state}{why}"


def claim_seconds(task: task_pb2.Task) -> float:
    """How long the claim lasts unrenewed, by log time."""
    if not (task.HasField("claim_expire_time") and task.HasField("update_time")):
        return DEFAULT_CLAIM_S
    # Both are log time: their difference holds whatever clock this machine has.
    ends_ms = task.claim_expire_time.ToMilliseconds()
    return max((ends_ms - task.update_time.ToMilliseconds()) / 1000, SHORTEST_CLAIM_S)


def seconds_to_deadline(task: task_pb2.Task) -> float | None:
    """From the claim to the task's deadline, by log time; None where it has none."""
    if not task.HasField("deadline_time"):
        return None
    # Both are log time, as above.
    return (task.deadline_time.ToMilliseconds() - task.update_time.ToMilliseconds()) / 1000
