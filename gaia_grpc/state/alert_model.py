"""What the model says where alerts ask it: the estimate beside a pattern."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gaia.alert.v1 import alert_pb2

from gaia_grpc.state.alert_text import describe
from gaia_grpc.state.context import Context
from gaia_grpc.state.detector import Estimate, estimate
from gaia_grpc.state.patterns import Finding
from gaia_grpc.state.timelines import Key, Timeline
from gaia_grpc.state.windows import StudentWindow

Follower = Callable[[Timeline, Key, StudentWindow | None, Estimate | None, int], None]

NO_SEVERITY: Final = 0


class ModelLooks:
    """Asks the model."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.follower: Follower | None = None
        self.read_settings()

    def read_settings(self) -> None:
        """The length of its window."""
        self._window_ms = self._context.settings.milliseconds("metrics.window")

    def look(self, timeline: Timeline, key: Key, window: StudentWindow) -> None:
        """Metrics came into a window."""

    def severity(self, timeline_id: str, key: Key) -> int:
        """Where the machine of a student in an app stands; 0 while it has no episode."""
        del timeline_id, key
        return NO_SEVERITY

    def forget_student(self, student_id: str) -> None:
        """Nothing is kept of a student."""

    def estimate(self, window: StudentWindow, app_name: str, end_ms: int) -> Estimate:
        """The model on the window that ends then."""
        return estimate(window, app_name, end_ms, self._window_ms)

    def describe(
        self,
        alert: alert_pb2.Alert,
        finding: Finding | None,
        found: Estimate,
        patterns_window_ms: int,
    ) -> None:
        """Writes what was found into the alert; never whether it is pushed."""
        pushed = alert.pushed
        if finding is not None:
            describe(
                alert,
                finding,
                found,
                errors_window_ms=patterns_window_ms,
                window_ms=self._window_ms,
            )
        alert.pushed = pushed
