"""What is read of alerts: pages of them, newest first, and their events after a sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gaia.alert.v1 import alert_pb2
from gaia.command.v1 import query_pb2

from gaia_grpc.state import page_tokens
from gaia_grpc.state.alert_log import SCANNED_AT_MOST, AlertLog, ScopeIndex, select_by
from gaia_grpc.state.alert_record import AlertRecord
from gaia_grpc.state.context import QueryHandler
from gaia_grpc.state.refusal import OUT_OF_RANGE, invalid, refused

DEFAULT_EVENTS, MOST_EVENTS = 100, 1_000
NOTHING_BELOW = 1 << 62
"""Above every number."""


class AlertQueries:
    """Answers ListAlerts and the reading of alert events."""

    def __init__(
        self,
        records: Mapping[int, AlertRecord],
        index: ScopeIndex,
        log: AlertLog,
        classrooms_of: Callable[[str], Sequence[str]],
    ) -> None:
        self._classrooms_of = classrooms_of
        self._records = records
        self._index = index
        self._log = log
        self.handlers: Mapping[str, QueryHandler] = {
            "list_alerts": self.list_alerts,
            "alert_events": self.alert_events,
        }

    def list_alerts(self, body: alert_pb2.ListAlertsRequest, now_ms: int) -> query_pb2.QueryResult:
        """Newest first; a page that had to look far may be short and still name a next one."""
        del now_ms
        selection = select_by(body.filter, self._classrooms_of)
        size = page_tokens.page_size(body.page_size)
        token = page_tokens.decode(body, body.page_token)
        last = int(token) if token else NOTHING_BELOW
        answer = alert_pb2.ListAlertsResponse()
        for scanned, number in enumerate(self._index.below(selection, last)):
            if len(answer.alerts) >= size or scanned >= SCANNED_AT_MOST:
                answer.next_page_token = page_tokens.encode(body, str(last))
                break
            last = number
            record = self._records[number]
            if body.state and record.state != body.state:
                continue
            if selection.matches(record.student_id, record.severity):
                answer.alerts.add().MergeFromString(record.body)
        return query_pb2.QueryResult(list_alerts=answer)

    def alert_events(self, body: query_pb2.AlertEventsQuery, now_ms: int) -> query_pb2.QueryResult:
        """Matching events after a sequence; 0 is all that are retained."""
        del now_ms
        selection = select_by(body.filter, self._classrooms_of)
        oldest = self._log.oldest
        if body.after_sequence < 0:
            raise invalid("after_sequence", "after_sequence is negative")
        if 0 < body.after_sequence < oldest - 1:
            raise refused(
                OUT_OF_RANGE,
                "OUT_OF_RANGE",
                f"events up to {oldest - 1} are no longer retained",
                details={"oldest_sequence": str(oldest)},
            )
        limit = min(body.limit if body.limit > 0 else DEFAULT_EVENTS, MOST_EVENTS)
        events, through = self._log.select(selection, body.after_sequence, limit)
        answer = query_pb2.AlertEventsResult(
            events=[event.message() for event in events],
            through_sequence=through,
            oldest_sequence=oldest,
            newest_sequence=self._log.newest,
        )
        return query_pb2.QueryResult(alert_events=answer)
