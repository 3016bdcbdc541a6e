"""The record of one alert. A snapshot holds what it says once, in its newest event."""

from __future__ import annotations

from gaia.alert.v1 import alert_pb2
from gaia.command.v1 import metrics_record_pb2

from gaia_grpc.state.alert_log import AlertLog, scope_of

NO_PUSH, MUTED, NO_PLACE = 0, 1, 2
"""What holds back a push: nothing, a mute, the push budget."""


class AlertRecord:
    """One alert; `body` is the serialized Alert, shared with its newest event."""

    __slots__ = (
        "body", "last_sequence", "number", "push_wait", "severity", "state", "student_id",
    )  # fmt: skip

    def __init__(self, number: int, student_id: str) -> None:
        self.number = number
        self.student_id = student_id
        self.severity = 0
        self.state = 0
        self.last_sequence = 0
        self.body = b""
        self.push_wait = NO_PUSH
        """What holds back its push."""

    @property
    def is_open(self) -> bool:
        """Whether its episode goes on."""
        return self.state != alert_pb2.ALERT_STATE_RESOLVED

    def message(self) -> alert_pb2.Alert:
        """The alert as the contract has it, a copy."""
        return alert_pb2.Alert.FromString(self.body)


def encode_alert(record: AlertRecord, log: AlertLog) -> bytes:
    """An alert as an `AlertRecord` message, with its bytes where the snapshot's log lacks them."""
    own_body = record.last_sequence < log.frozen_oldest
    return metrics_record_pb2.AlertRecord(
        number=record.number,
        last_sequence=record.last_sequence,
        state=record.state,
        alert=record.body if own_body else b"",
        push_wait=record.push_wait,
    ).SerializeToString(deterministic=True)


def decode_alert(
    stored: metrics_record_pb2.AlertRecord, log: AlertLog
) -> tuple[AlertRecord, str, str]:
    """The record, its timeline and its classroom; the log is loaded. Raises `ValueError`."""
    event = log.get(stored.last_sequence)
    if (event is None) != bool(stored.alert):
        raise ValueError(f"alert {stored.number} and its event {stored.last_sequence}")
    if event is None:
        alert = alert_pb2.Alert.FromString(stored.alert)
        record = AlertRecord(stored.number, alert.student_id)
        record.severity = alert.severity
        record.body = stored.alert
        timeline_id, classroom_id = scope_of(alert), alert.classroom_id
    else:
        if event.alert_number != stored.number:
            raise ValueError(f"event {event.sequence} is not of alert {stored.number}")
        record = AlertRecord(stored.number, event.student_id)
        record.severity = event.severity
        record.body = event.body
        timeline_id, classroom_id = event.timeline_id, event.classroom_id
    record.state = stored.state
    record.last_sequence = stored.last_sequence
    record.push_wait = stored.push_wait
    return record, timeline_id, classroom_id
