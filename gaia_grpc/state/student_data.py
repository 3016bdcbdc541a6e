"""DeleteStudentData: one student's records leave every table, in one command.

The tables know nothing of each other here: each forgets a student in its own way. What remains on
disk until the log is compacted is named by the index of the command itself, which holds the id too;
`last_index` tells the node up to where no log may be kept once a snapshot stands for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from gaia.classroom.v1 import classroom_pb2
from gaia.command.v1 import command_pb2, snapshot_pb2

from gaia_grpc.state import refusal
from gaia_grpc.state.alerts import AlertsTable
from gaia_grpc.state.classrooms import ClassroomTable
from gaia_grpc.state.context import CommandHandler, Context, QueryHandler
from gaia_grpc.state.history import Histories
from gaia_grpc.state.metrics import MetricsTable
from gaia_grpc.state.requests import RequestTable
from gaia_grpc.state.snapshot import Part, Section

NO_QUERIES: Final[Mapping[str, QueryHandler]] = {}


class StudentDataTable:
    """Handles DeleteStudentData."""

    def __init__(
        self,
        context: Context,
        requests: RequestTable,
        metrics: MetricsTable,
        histories: Histories,
        alerts: AlertsTable,
        classrooms: ClassroomTable,
    ) -> None:
        self._context = context
        self._requests = requests
        self._metrics = metrics
        self._alerts = alerts
        self._classrooms = classrooms
        self._histories = histories
        self.last_index = 0
        """Index of the last deletion; 0 where there was none."""
        self.commands: Mapping[str, CommandHandler] = {"delete_student_data": self.delete}
        self.queries = NO_QUERIES
        self.parts: Sequence[Part] = (Section("deletions", self._freeze, self._load),)

    def settings_changed(self) -> None:
        """Nothing here depends on settings."""

    def delete(self, body: command_pb2.DeleteStudentData) -> command_pb2.CommandResult:
        """Also where nothing is known of the student: the log may hold batches all the same."""
        if not body.student_id:
            raise refusal.invalid("student_id", "student_id is empty")
        student_id = body.student_id
        events, alerts = self._alerts.forget_student(student_id)
        answer = classroom_pb2.DeleteStudentDataResponse(
            removed_windows=self._metrics.forget_student(student_id),
            removed_alerts=alerts,
            removed_alert_events=events,
            removed_history=self._histories.forget_student(student_id),
            removed_memberships=self._classrooms.forget_student(student_id),
            compact_through_index=self._context.index,
        )
        self._requests.forget_student(student_id)
        self.last_index = self._context.index
        return command_pb2.CommandResult(deleted=answer)

    # --- snapshots

    def _freeze(self) -> Iterator[bytes]:
        # None where there was none: an older version would not read it.
        if not self.last_index:
            return iter(())
        stored = snapshot_pb2.Deletions(last_index=self.last_index)
        return iter((stored.SerializeToString(deterministic=True),))

    def _load(self, data: bytes) -> None:
        self.last_index = snapshot_pb2.Deletions.FromString(data).last_index
