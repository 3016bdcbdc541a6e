"""From metric batches to the log: what has come is packed and committed together.

Calls and streams hand their batches in here and wait. One task takes them in turn, packs as many as
one command holds, and proposes it; while commands are on their way more batches gather, so a crowd
of small calls costs few log entries. Metrics never get ahead of themselves in the log: only
`max_metrics_in_log` are on their way at once, so that whatever else is proposed waits behind that
many and no more, however many wait here.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from gaia.command.v1 import command_pb2
from gaia.metrics.v1 import metrics_pb2

from gaia_grpc import errors
from gaia_grpc.services.heartbeats import refusal_copy
from gaia_grpc.services.ingress import Ingress, Outcome, propose
from gaia_grpc.services.metric_gate import Hold, MetricGate
from gaia_grpc.services.sampling import SETTING, sample
from gaia_grpc.services.settings_cache import SettingsCache
from gaia_grpc.services.turns import Turns
from gaia_grpc.state.channels import ERROR_TYPES
from gaia_grpc.state.omissions import OMISSIONS_LEVEL
from gaia_grpc.state.packing import Packing, pack_batch

MAX_METRICS_PER_COMMAND = 5_000
"""Applying an entry can't be interrupted, so more become several entries."""
MAX_PARTS_PER_COMMAND = 1_500
"""Batches, their types and their gap marks: what applying them costs beside their metrics."""
MAX_ERROR_BATCHES_PER_COMMAND = 8
"""Of one student in one app: each looks through that window for patterns. A thousand in one entry
would keep every peer from its heartbeats for seconds."""
MAX_COMMANDS_IN_LOG = 4
"""While so many are on their way, batches gather for a fuller one."""
PACK_SLICE_NS = 2_000_000
"""After this long of packing the loop gets its turn: peers wait for heartbeats."""


@dataclass(frozen=True, slots=True)
class Published:
    """One result per batch, and where the last of the entries stands in the log."""

    results: list[metrics_pb2.BatchResult]
    term: int
    index: int


@dataclass(eq=False, slots=True)
class Submission:
    """Batches of one caller on their way; `future` gets what became of them."""

    batches: Sequence[metrics_pb2.MetricBatch]
    deadline_s: float
    future: asyncio.Future[Published]
    results: dict[int, metrics_pb2.BatchResult] = field(default_factory=dict)
    """By the place of the batch: of two commands under way the second may be answered first."""
    term: int = 0
    index: int = 0
    next_batch: int = 0
    """The first that is not packed."""
    packed: Packed | None = None
    """The batch before it, where the last command had no room for it."""
    proposed: bool = False
    on_way: int = 0
    """Commands in the log's hands that hold batches of it."""

    async def wait(self) -> Published:
        """What became of the batches; raises why it is not known, or why nothing was stored."""
        try:
            async with asyncio.timeout(max(self.deadline_s - time.monotonic(), 0.001)):
                return await self.future
        except TimeoutError:
            if self.proposed:
                raise errors.OutcomeUnknownError("not committed in time") from None
            raise errors.UnavailableError(
                "the metrics before these were not committed in time; nothing was applied"
            ) from None

    def settle(self, place: int, result: metrics_pb2.BatchResult, outcome: Outcome) -> None:
        """Notes what became of one batch; the waiter hears it with the last of them."""
        self.results[place] = result
        if outcome.index > self.index:
            self.term, self.index = outcome.term, outcome.index
        if len(self.results) == len(self.batches) and not self.future.done():
            ordered = [self.results[at] for at in range(len(self.batches))]
            self.future.set_result(Published(ordered, self.term, self.index))

    def fail(self, error: Exception) -> None:
        """Ends it; the waiter gets an error of its own."""
        if not self.future.done():
            copy = refusal_copy(error) if isinstance(error, errors.GaiaError) else error
            self.future.set_exception(copy)

    @property
    def unpacked(self) -> bool:
        """Whether there is anything left for a next command."""
        waits = self.packed is not None or self.next_batch < len(self.batches)
        return waits and not self.future.done()

    @property
    def keeps_order(self) -> bool:
        """Whether the rest must wait for the commands before it. The clock of a timeline is in its
        batches: where an earlier one is lost and sent again, a later one would make it late."""
        return self.on_way > 0 and any(batch.timeline_id for batch in self.batches)


@dataclass(frozen=True, slots=True)
class Packed:
    """One batch, ready for the log."""

    place: int
    """Of the batch among those of its caller."""
    sent: int
    """Metrics that the sender put in."""
    packing: Packing
    metrics: int
    parts: int
    """The batch itself, its types and its gap marks."""
    window: tuple[str, str, str] | None
    """Whose errors it holds; None where it holds none."""


@dataclass(slots=True)
class Gathered:
    """One command to be: batches and whose they are, of bounded work to apply."""

    room: int
    parts: list[tuple[Submission, Packed]] = field(default_factory=list)
    metrics: int = 0
    pieces: int = 0
    """Sum of the `parts` of all batches."""
    full: bool = False
    _with_errors: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    @property
    def submissions(self) -> list[Submission]:
        """Whose batches it holds, each once."""
        return list(dict.fromkeys(submission for submission, _ in self.parts))

    def take(self, submission: Submission, packed: Packed) -> bool:
        """Puts a batch in; False where it does not fit. Into an empty one everything does."""
        if self.parts:
            pieces = self.pieces + packed.parts
            if self.metrics + packed.metrics > self.room or pieces > MAX_PARTS_PER_COMMAND:
                self.full = True
                return False
            if packed.window and (
                self._with_errors[packed.window] >= MAX_ERROR_BATCHES_PER_COMMAND
            ):
                return False
        self.parts.append((submission, packed))
        self.metrics += packed.metrics
        self.pieces += packed.parts
        if packed.window:
            self._with_errors[packed.window] += 1
        return True


class Publisher:
    """Packs and proposes checked batches of all callers of one peer."""

    def __init__(self, ingress: Ingress, settings: SettingsCache, gate: MetricGate) -> None:
        self.gate = gate
        self.turns = Turns()
        self._ingress = ingress
        self._settings = settings
        self._max_in_log = ingress.limits.max_metrics_in_log
        self._queue: deque[Submission] = deque()
        self._gathering: asyncio.Task[None] | None = None
        self._commands: set[asyncio.Task[None]] = set()
        self._in_log = 0
        self._woken = asyncio.Event()
        """A command is through, or something new is queued."""

    async def publish(
        self, request: metrics_pb2.PublishMetricsRequest, timeout_s: float
    ) -> Published:
        """Returns once all batches are committed; they are idempotent, so a retry is safe.

        Raises `OverloadedError` at once where there is no room for them.
        """
        deadline_s = time.monotonic() + timeout_s
        metrics = sum([len(batch.metrics) for batch in request.batches])
        hold = self.gate.admit(request.batches[0].source_id, metrics, request.ByteSize())
        published = await self.submit(request.batches, hold, deadline_s).wait()
        await self.turns.wait()
        return published

    def submit(
        self, batches: Sequence[metrics_pb2.MetricBatch], hold: Hold, deadline_s: float
    ) -> Submission:
        """Queues batches; the room they hold is given back when their fate is known."""
        future: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
        submission = Submission(batches, deadline_s, future)

        def settled(done: asyncio.Future[Published]) -> None:
            self.gate.release(hold)
            if not done.cancelled():
                done.exception()  # its caller may be gone already

        future.add_done_callback(settled)
        self._queue.append(submission)
        self._woken.set()
        if self._gathering is None or self._gathering.done():
            self._gathering = asyncio.get_running_loop().create_task(self._serve())
        return submission

    async def close(self) -> None:
        """Waits for what is on its way; every command has a deadline."""
        while self._gathering is not None and not self._gathering.done():
            await asyncio.wait((self._gathering,))
        while self._commands:
            await asyncio.wait(set(self._commands))

    # --- inside ---

    async def _serve(self) -> None:
        """Makes commands of what is queued, for as long as there is something."""
        while self._queue:
            room = min(MAX_METRICS_PER_COMMAND, self._max_in_log - self._in_log)
            if len(self._commands) >= MAX_COMMANDS_IN_LOG or (self._commands and room <= 0):
                self._woken.clear()
                await self._woken.wait()
                continue
            self._woken.clear()
            gathered = Gathered(room)
            try:
                max_future_ms = await self._settings.milliseconds("metrics.max_future")
                one_in = await self._settings.number(SETTING, default=0)
                await self._gather(gathered, max_future_ms, one_in)
            except Exception as error:  # each caller gets it, and the interceptor maps it
                for submission in [*self._queue, *gathered.submissions]:
                    submission.fail(error)
                self._queue.clear()
                return
            if gathered.parts:
                for submission in gathered.submissions:
                    submission.on_way += 1
                self._in_log += gathered.metrics
                task = asyncio.get_running_loop().create_task(self._send(gathered))
                self._commands.add(task)
                task.add_done_callback(partial(self._sent, gathered))
            elif self._commands:
                await self._woken.wait()

    async def _gather(self, gathered: Gathered, max_future_ms: int, one_in: int) -> None:
        """Puts the batches of the first callers into the next command, as many as it holds.

        A caller whose batches fill a whole command by themselves goes to the end of the queue.
        """
        passed: list[Submission] = []
        try:
            await self._take_queued(gathered, passed, max_future_ms, one_in)
        finally:
            if len(passed) == 1 and gathered.submissions == passed:
                self._queue.append(passed[0])
            else:
                self._queue.extendleft(reversed(passed))

    async def _take_queued(
        self, gathered: Gathered, passed: list[Submission], max_future_ms: int, one_in: int
    ) -> None:
        """As `_gather`; `passed` gets those of whom something is left."""
        slice_end_ns = time.perf_counter_ns() + PACK_SLICE_NS
        while self._queue and not gathered.full:
            submission = self._queue.popleft()
            while submission.unpacked and not submission.keeps_order:
                packed = submission.packed or self._pack(submission, max_future_ms, one_in)
                if packed is None:
                    break
                submission.packed = None if gathered.take(submission, packed) else packed
                if submission.packed is not None:
                    break
                if time.perf_counter_ns() >= slice_end_ns:
                    await asyncio.sleep(0)
                    slice_end_ns = time.perf_counter_ns() + PACK_SLICE_NS
            if submission.unpacked:
                passed.append(submission)

    def _pack(self, submission: Submission, max_future_ms: int, one_in: int) -> Packed | None:
        """The next batch of a caller; None where it can't be packed, which ends them all."""
        batch = submission.batches[submission.next_batch]
        try:
            counted = not batch.omissions or self._level() >= OMISSIONS_LEVEL
            packing = pack_batch(batch, max_future_ms=max_future_ms, with_omissions=counted)
        except errors.InvalidArgumentError as error:
            if submission.proposed:
                submission.fail(errors.OutcomeUnknownError(error.message))
            else:
                submission.fail(error)
            return None
        place, submission.next_batch = submission.next_batch, submission.next_batch + 1
        if one_in > 1 and self.gate.under_pressure:
            sample(packing.batch, one_in)
        packed = packing.batch
        window = None
        if any(column.metric_type in ERROR_TYPES for column in packed.columns):
            window = (packed.timeline_id, packed.student_id, packed.app_name)
        # 8 bytes a value.
        metrics = sum([len(column.values_micro) // 8 for column in packed.columns])
        parts = 1 + len(packed.columns) + len(packed.omissions)
        return Packed(place, len(batch.metrics), packing, metrics, parts, window)

    def _level(self) -> int:
        """The cluster's feature level; costs more than most batches."""
        return self._ingress.log.status().feature_level

    async def _send(self, gathered: Gathered) -> None:
        """Proposes one command and gives every caller its part of the outcome."""
        parts = gathered.parts
        submissions = gathered.submissions
        for submission in submissions:
            submission.proposed = True
        deadline_s = max(submission.deadline_s for submission in submissions)
        body = command_pb2.PublishMetrics(batches=[packed.packing.batch for _, packed in parts])
        command = command_pb2.Command(publish_metrics=body).SerializeToString()
        try:
            timeout_s = max(deadline_s - time.monotonic(), 0.001)
            outcome = await propose(self._ingress.log, command, timeout_s)
            self._settle(gathered, outcome)
        except Exception as error:  # every caller gets it, and the interceptor maps it
            for submission in submissions:
                submission.fail(error)

    def _sent(self, gathered: Gathered, task: asyncio.Task[None]) -> None:
        self._commands.discard(task)
        for submission in gathered.submissions:
            submission.on_way -= 1
        self._in_log -= gathered.metrics
        self._woken.set()

    def _settle(self, gathered: Gathered, outcome: Outcome) -> None:
        results = outcome.result.publish.results
        for (submission, packed), result in zip(gathered.parts, results, strict=True):
            self._complete(packed, result)
            submission.settle(packed.place, result, outcome)

    def _complete(self, packed: Packed, result: metrics_pb2.BatchResult) -> None:
        """Puts into the result what only ingress knows, and counts it."""
        rejected, stats = packed.packing.rejected, self.gate.stats
        result.rejected.extend(rejected)
        if result.status == metrics_pb2.BATCH_STATUS_REFUSED:
            if result.reason == errors.ResourceExhaustedError.reason:
                stats.refused += packed.sent
            else:
                stats.rejected += packed.sent
            return
        valid = packed.sent - len(rejected)
        stored = result.accepted_count + result.late_count
        # Of a duplicate too, whose first attempt may have come under pressure and this one not.
        result.sampled_count = max(valid - stored, 0)
        self.gate.rate.acknowledged(valid)
        if result.status == metrics_pb2.BATCH_STATUS_DUPLICATE:
            stats.duplicate += valid
            return
        stats.accepted += result.accepted_count
        stats.late += result.late_count
        stats.sampled += result.sampled_count
        stats.rejected += len(rejected)
