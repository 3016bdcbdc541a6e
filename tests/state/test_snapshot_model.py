"""The queue against the plain one again, with snapshots under way and restarts from them."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.snapshot_codec import SnapshotEncoder
from tests.state.snapshot_checks import check_equal, rest_of, restored, timers, whole
from tests.state.test_task_model import QueueComparison


class SnapshotComparison(QueueComparison):
    """The rules of the queue, and between them: begin a snapshot, take some of it, restart."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder: SnapshotEncoder | None = None
        self.expected = self.taken = b""

    @rule()
    def begin(self) -> None:
        if self.encoder is None:
            self.expected, self.taken = whole(self.log.machine), b""
            self.encoder = self.log.machine.begin_snapshot()

    @rule(records=st.integers(1, 5))
    def take(self, records: int) -> None:
        if self.encoder is not None:
            self.taken += self.encoder.take(records)

    @rule()
    def restore(self) -> None:
        # What was under way ends with the peer; its bytes must be right all the same.
        self.finish()
        before = self.log.machine
        self.log.machine = restored(whole(before))
        check_equal(before, self.log.machine)

    def finish(self) -> None:
        if self.encoder is not None:
            self.taken += rest_of(self.encoder)
            assert self.taken == self.expected
            self.encoder = None

    def teardown(self) -> None:
        self.finish()
        twin = StateMachine()
        for index, (kind, data) in enumerate(self.log.entries, start=1):
            twin.apply(index, kind, data)
        assert whole(twin) == whole(self.log.machine)
        live = [timer[1:] for timer in timers(twin)]
        assert len(live) == len(set(live))
        super().teardown()


SnapshotComparison.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestSnapshotComparison = SnapshotComparison.TestCase
