"""The rows of the settings: (name, kind, default, minimum, maximum, description)."""

from __future__ import annotations

ROWS: tuple[tuple[str, str, str, str, str, str], ...] = (
    # --- sessions
    ("session.heartbeat_interval", "duration", "10s", "50ms", "1h",
     "How often a session is asked to send a heartbeat."),
    ("session.degraded_after", "duration", "15s", "50ms", "1d",
     "Without a heartbeat for this long a session is degraded and gets no new task."),
    ("session.failed_after", "duration", "30s", "100ms", "2d",
     "Without a heartbeat for this long a session is failed and loses its claims."),
    ("session.retention", "duration", "1d", "1s", "365d",
     "How long a failed session is remembered."),
    ("session.max_sessions", "int", "10000", "1", "1000000",
     "Most sessions, failed ones included."),
    # --- tasks
    ("task.claim_timeout", "duration", "10m", "50ms", "7d",
     "A claim that is not extended for this long is taken back, and counts as a failed attempt."),
    ("task.retry_base", "duration", "1s", "0ms", "1h",
     "Wait before the first retry; each further wait is twice as long."),
    ("task.retry_max_delay", "duration", "1h", "1ms", "7d",
     "Longest wait before a retry."),
    ("task.max_retries", "int", "3", "0", "1000",
     "Retries of a task that names no number itself."),
    ("task.retention", "duration", "1d", "1s", "365d",
     "How long a finished task is kept."),
    ("task.max_finished", "int", "200000", "1", "10000000",
     "Most finished tasks that are kept; the oldest go first."),
    ("task.max_pending", "int", "1000000", "1", "10000000",
     "Most tasks that are not finished."),
    ("task.max_history", "int", "64", "1", "64",
     "Events kept of each task."),
    ("task.max_waiters", "int", "10000", "1", "100000",
     "Most claims that wait at once."),
    ("task.ageing_interval", "duration", "60s", "0ms", "30d",
     "A pending task gains one level of priority each time it has waited this long; 0ms is never."),
    ("task.retry_jitter", "float", "0", "0", "1",
     "Share of a wait before a retry by which it may be shorter."),
    ("task.max_dependents", "int", "1000", "1", "10000",
     "Most tasks that depend on one."),
    ("task.max_wait", "duration", "60s", "0ms", "10m",
     "Longest wait of a claim; a longer one is cut to it."),
    # --- requests
    ("request.retention", "duration", "15m", "1s", "1d",
     "How long the outcome of a request_id is kept."),
    ("request.ingress_retention", "duration", "60s", "1s", "1d",
     "The same for an id that a peer assigned because the caller gave none."),
    ("request.max_entries", "int", "1000000", "1", "10000000",
     "Most outcomes that are kept; further requests are refused and none is evicted."),
    # --- metrics
    ("metrics.window", "duration", "5m", "1s", "1h",
     "Length of the rolling window and of one piece of history."),
    ("metrics.max_future", "duration", "60s", "0ms", "1h",
     "A metric further ahead of its batch's sent_at_ms is rejected."),
    ("metrics.history_retention", "duration", "8h", "1m", "30d",
     "How long past windows are kept."),
    ("metrics.type_retention", "retentions", "none", "0ms", "365d",
     "How long past windows keep single metric types, like keypress=1h error=30d; 0ms keeps none."
     " All others: metrics.history_retention."),
    ("metrics.max_history_mib", "int", "512", "1", "1000000",
     "Most memory of past windows in MiB: of live metrics, and as much of all other timelines;"
     " the oldest windows go first."),
    ("metrics.dedup_sequences", "int", "1024", "1", "65536",
     "Sequences of a source's epoch that are remembered one by one."),
    ("metrics.sampling", "int", "0", "0", "1000",
     "A peer under pressure keeps one in so many of the lowest classes; 0 keeps all, always."),
    # --- alerts
    ("alert.cooldown", "duration", "5m", "0ms", "1d",
     "Quiet time after an alert of the same student, app and pattern group ended."),
    ("alert.retained_events", "int", "100000", "1", "10000000",
     "Alert events that are kept."),
    ("alert.errors_window", "duration", "60s", "1s", "1h",
     "Errors are counted over this long."),
    ("alert.repeated_errors", "int", "3", "1", "1000",
     "Errors in alert.errors_window that raise repeated_errors."),
    ("alert.excessive_errors", "int", "5", "1", "1000",
     "Errors in alert.errors_window that raise excessive_errors."),
    ("alert.critical_streak", "int", "8", "1", "1000",
     "Errors in a row that make an alert critical."),
    ("alert.acknowledged_mute", "duration", "5m", "0ms", "1d",
     "How long an acknowledged alert is muted."),
    ("alert.exit_after", "duration", "60s", "0ms", "1h",
     "An alert ends when its pattern has not been seen for this long."),
    # --- locks
    ("lock.lease", "duration", "30s", "50ms", "1d",
     "Length of a lease where the caller names none."),
    ("lock.max_lease", "duration", "1h", "50ms", "7d",
     "Longest lease; a longer one is refused."),
    ("lock.max_locks", "int", "100000", "1", "1000000",
     "Most locks that are held at once."),
    ("lock.max_waiters", "int", "10000", "1", "100000",
     "Most callers that wait for locks at once."),
    ("lock.max_wait", "duration", "60s", "0ms", "10m",
     "Longest wait for a lock; a longer one is cut to it."),
    # --- classrooms
    ("classroom.max_classrooms", "int", "1000", "1", "10000",
     "Most classrooms."),
    ("classroom.max_members", "int", "200000", "1", "2000000",
     "Most teachers and students of all classrooms together."),
)  # fmt: skip

ORDERED_PAIRS: tuple[tuple[str, str], ...] = (
    ("session.degraded_after", "session.failed_after"),
    ("alert.repeated_errors", "alert.excessive_errors"),
)
"""The first must be less than the second."""

SINCE_LEVELS: dict[str, int] = {
    "metrics.max_history_mib": 3,
    "metrics.type_retention": 3,
    "lock.max_lease": 2,
    "lock.max_locks": 2,
    "lock.max_waiters": 2,
    "lock.max_wait": 2,
    "task.ageing_interval": 3,
    "task.retry_jitter": 3,
    "task.max_dependents": 3,
    "metrics.sampling": 3,
    "classroom.max_classrooms": 3,
    "classroom.max_members": 3,
}
"""Settings that a cluster below this feature level does not have: an older version knows nothing of
them, and what it lists, accepts and refuses is part of the chain hash. All others: level 1."""
