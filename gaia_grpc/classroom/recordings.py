"""Recorded logs of real students, read as metrics in the order of time.

Three formats: `cognitive-tutor` (KDD Cup 2010 step log with real timestamps), `assistments`
(2009-10 skill builder: an order and response times, no clock) and `csv` (columns student_id,
app_name, metric_type, value, event_time_ms: milliseconds since 1970, or an ISO 8601 time). A file
that ends in .gz is unpacked while reading.
"""

from __future__ import annotations

import csv
import gzip
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TextIO

from gaia_grpc.errors import InvalidArgumentError

ID_PATTERN = re.compile(r"[A-Za-z0-9._:-]{1,128}")
ASSISTMENTS_BEGIN_MS = 1_251_763_200_000
"""2009-09-01: ASSISTments logs have an order but no clock, so each student begins here."""
MIN_RESPONSE_MS = 1_000
MAX_RESPONSE_MS = 600_000
EVENT_TIME_MALFORMED = "event_time_ms is neither milliseconds since 1970 nor an ISO 8601 time"
TIME_FORMATS = ("%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%d %H:%M:%S")


class RecordingFormat(StrEnum):
    """How a recorded log is written down."""

    ASSISTMENTS = "assistments"
    COGNITIVE_TUTOR = "cognitive-tutor"
    CSV = "csv"


@dataclass(frozen=True, slots=True)
class RecordedMetric:
    """One metric of a recorded log; times in milliseconds since 1970."""

    at_ms: int
    student_id: str
    app_name: str
    metric_type: str
    value: float


@dataclass(slots=True)
class Recording:
    """A whole log: metrics in the order of time, and what was not understood."""

    metrics: list[RecordedMetric] = field(default_factory=list)
    rows_read: int = 0
    rows_used: int = 0
    rows_skipped: dict[str, int] = field(default_factory=dict)
    """How many rows were skipped, by reason."""

    @property
    def students(self) -> list[str]:
        """The students, sorted."""
        return sorted({metric.student_id for metric in self.metrics})


class _RowError(Exception):
    """Why one row can't be used."""


def read_recording(path: Path, log_format: RecordingFormat, limit: int | None = None) -> Recording:
    """Reads at most `limit` rows.

    Raises `InvalidArgumentError` where the file has not the columns of its format, and OSError.
    """
    reader = _READERS[log_format]
    recording = Recording()
    clocks: dict[str, int] = {}
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", errors="replace", newline="") as text:
        for row in _rows(text, log_format, path):
            if recording.rows_read == limit:
                break
            recording.rows_read += 1
            try:
                found = list(reader(row, clocks))
            except _RowError as error:
                reason = str(error)
                recording.rows_skipped[reason] = recording.rows_skipped.get(reason, 0) + 1
                continue
            recording.rows_used += 1
            recording.metrics += found
    # The sort is stable: metrics of one moment stay in the order of the log.
    recording.metrics.sort(key=lambda metric: metric.at_ms)
    return recording


def _rows(text: TextIO, log_format: RecordingFormat, path: Path) -> Iterator[Mapping[str, str]]:
    tabs = log_format is RecordingFormat.COGNITIVE_TUTOR
    try:
        rows = csv.DictReader(text, delimiter="\t" if tabs else ",", restval="")
        missing = [name for name in _COLUMNS[log_format] if name not in (rows.fieldnames or ())]
        if missing:
            raise InvalidArgumentError(
                f"{path} is no {log_format} log: its first line lacks {', '.join(missing)}"
            )
        yield from rows
    except (csv.Error, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InvalidArgumentError(f"{path} can't be read: {error}") from error


# --- one reader a format --------------------------------------------------------------------------


def _read_cognitive_tutor(
    row: Mapping[str, str], clocks: dict[str, int]
) -> Iterator[RecordedMetric]:
    """One step of a problem.

    The log tells the first and the last transaction of a step; its other wrong answers and hints
    are spread evenly between them.
    """
    student_id = _student(row["Anon Student Id"])
    first_ms = _time_ms(row, "First Transaction Time")
    end_ms = max(first_ms, _time_ms(row, "Step End Time"))
    errors, hints = _count(row, "Incorrects"), _count(row, "Hints")
    steps = errors + hints + 1
    place = 0
    for metric_type, count in (("error", errors), ("hint", hints)):
        for _ in range(count):
            at_ms = first_ms + (end_ms - first_ms) * place // steps
            yield RecordedMetric(at_ms, student_id, "math", metric_type, 1.0)
            place += 1
    if _count(row, "Corrects"):
        yield RecordedMetric(end_ms, student_id, "math", "correct", 1.0)
    if row["Step Start Time"]:
        response_ms = first_ms - _time_ms(row, "Step Start Time")
        if 0 <= response_ms <= MAX_RESPONSE_MS:
            yield RecordedMetric(first_ms, student_id, "math", "response_time", float(response_ms))


def _read_assistments(row: Mapping[str, str], clocks: dict[str, int]) -> Iterator[RecordedMetric]:
    """One problem. Each student's clock goes on by the response time of the problem."""
    student_id = _student(f"user-{row['user_id']}")
    response_ms = max(MIN_RESPONSE_MS, min(MAX_RESPONSE_MS, _count(row, "ms_first_response")))
    correct = _count(row, "correct")
    errors = max(0, _count(row, "attempt_count") - 1) if not correct else 0
    at_ms = clocks.get(student_id, ASSISTMENTS_BEGIN_MS) + response_ms
    clocks[student_id] = at_ms
    yield RecordedMetric(at_ms, student_id, "math", "response_time", float(response_ms))
    if correct:
        yield RecordedMetric(at_ms, student_id, "math", "correct", 1.0)
        return
    hints = _count(row, "hint_count")
    for _ in range(max(errors, 0 if hints else 1)):
        yield RecordedMetric(at_ms, student_id, "math", "error", 1.0)
    for _ in range(hints):
        yield RecordedMetric(at_ms, student_id, "math", "hint", 1.0)


def _read_csv(row: Mapping[str, str], clocks: dict[str, int]) -> Iterator[RecordedMetric]:
    """One metric as it is."""
    student_id = _student(row["student_id"])
    for name in ("app_name", "metric_type"):
        if not ID_PATTERN.fullmatch(row[name] or ""):
            raise _RowError(f"{name} malformed")
    try:
        value = float(row["value"])
    except (TypeError, ValueError) as error:
        raise _RowError("value is no number") from error
    if not math.isfinite(value):
        raise _RowError("value is no number")
    at_ms = _event_time_ms(row["event_time_ms"])
    yield RecordedMetric(at_ms, student_id, row["app_name"], row["metric_type"], value)


_READERS = {
    RecordingFormat.ASSISTMENTS: _read_assistments,
    RecordingFormat.COGNITIVE_TUTOR: _read_cognitive_tutor,
    RecordingFormat.CSV: _read_csv,
}
_COLUMNS = {
    RecordingFormat.ASSISTMENTS: (
        "user_id",
        "correct",
        "attempt_count",
        "ms_first_response",
        "hint_count",
    ),
    RecordingFormat.COGNITIVE_TUTOR: (
        "Anon Student Id",
        "Step Start Time",
        "First Transaction Time",
        "Step End Time",
        "Incorrects",
        "Hints",
        "Corrects",
    ),
    RecordingFormat.CSV: ("student_id", "app_name", "metric_type", "value", "event_time_ms"),
}


# --- fields ---------------------------------------------------------------------------------------


def _student(text: str | None) -> str:
    if not ID_PATTERN.fullmatch(text or ""):
        raise _RowError("student id malformed")
    return text or ""


def _count(row: Mapping[str, str], column: str) -> int:
    try:
        number = float(row[column] or "")
    except ValueError as error:
        raise _RowError(f"{column} is no number") from error
    if not math.isfinite(number) or number < 0:
        raise _RowError(f"{column} is no number")
    return int(number)


def _event_time_ms(text: str | None) -> int:
    """Milliseconds since 1970, written so or as ISO 8601; UTC where that names no zone."""
    try:
        number = float(text or "")
    except ValueError:
        pass
    else:
        if math.isfinite(number) and number >= 0:
            return int(number)
        raise _RowError(EVENT_TIME_MALFORMED)
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError as error:
        raise _RowError(EVENT_TIME_MALFORMED) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000)


def _time_ms(row: Mapping[str, str], column: str) -> int:
    """Milliseconds since 1970; the logs name no time zone, so their times are taken as UTC."""
    for time_format in TIME_FORMATS:
        try:
            moment = datetime.strptime(row[column] or "", time_format).replace(tzinfo=UTC)
        except ValueError:
            continue
        return round(moment.timestamp() * 1_000)
    raise _RowError(f"{column} is no time")
