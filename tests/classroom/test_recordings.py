"""Recorded logs become metrics in the order of time."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from gaia_grpc.classroom.recordings import RecordedMetric, RecordingFormat, read_recording
from gaia_grpc.classroom.replay import (
    PAUSE_MS,
    PAUSE_WAIT_MS,
    ReplayCounts,
    count_result,
    cut,
)
from gaia_grpc.errors import InvalidArgumentError

SAMPLE = (
    Path(__file__).resolve().parents[3]
    / "shared/data/cognitive_tutor_algebra_2006_07_sample.tsv.gz"
)
needs_sample = pytest.mark.skipif(
    not SAMPLE.exists(), reason="the recorded log of real students is not on this machine"
)

TUTOR_HEADER = (
    "Row\tAnon Student Id\tStep Start Time\tFirst Transaction Time\tStep End Time\tIncorrects\t"
    "Hints\tCorrects"
)


def tutor_log(path: Path, *rows: str) -> Path:
    path.write_text("\n".join([TUTOR_HEADER, *rows]) + "\n")
    return path


def test_a_step_of_the_tutor_gives_errors_hints_a_success_and_a_response_time(
    tmp_path: Path,
) -> None:
    log = tutor_log(
        tmp_path / "log.tsv",
        "1\tana\t2006-10-26 09:51:58.0\t2006-10-26 09:52:30.0\t2006-10-26 09:53:30.0\t2\t1\t1",
    )
    recording = read_recording(log, RecordingFormat.COGNITIVE_TUTOR)
    found = [(each.at_ms, each.metric_type, each.value) for each in recording.metrics]
    first_ms = 1_161_856_350_000  # 2006-10-26 09:52:30 UTC
    assert found == [
        (first_ms, "error", 1.0),
        (first_ms, "response_time", 32_000.0),
        (first_ms + 15_000, "error", 1.0),
        (first_ms + 30_000, "hint", 1.0),
        (first_ms + 60_000, "correct", 1.0),
    ]
    assert {each.student_id for each in recording.metrics} == {"ana"}


def test_students_are_merged_in_the_order_of_time(tmp_path: Path) -> None:
    log = tutor_log(
        tmp_path / "log.tsv",
        "1\tana\t\t2006-10-26 10:00:05\t2006-10-26 10:00:05\t0\t0\t1",
        "2\tben\t\t2006-10-26 10:00:01\t2006-10-26 10:00:01\t0\t0\t1",
    )
    recording = read_recording(log, RecordingFormat.COGNITIVE_TUTOR)
    assert [each.student_id for each in recording.metrics] == ["ben", "ana"]


def test_rows_that_cannot_be_used_are_counted_by_reason(tmp_path: Path) -> None:
    log = tutor_log(
        tmp_path / "log.tsv",
        "1\tana\t\tyesterday\t2006-10-26 10:00:05\t0\t0\t1",
        "2\ta b\t\t2006-10-26 10:00:01\t2006-10-26 10:00:01\t0\t0\t1",
        "3\tana\t\t2006-10-26 10:00:01\t2006-10-26 10:00:01\tmany\t0\t1",
        "4\tana\t\t2006-10-26 10:00:01\t2006-10-26 10:00:01\t0\t0\t1",
    )
    recording = read_recording(log, RecordingFormat.COGNITIVE_TUTOR)
    assert (recording.rows_read, recording.rows_used) == (4, 1)
    assert recording.rows_skipped == {
        "First Transaction Time is no time": 1,
        "student id malformed": 1,
        "Incorrects is no number": 1,
    }


def test_assistments_has_an_order_and_response_times_only(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "user_id,correct,attempt_count,ms_first_response,hint_count\n"
        "7,1,1,20000,0\n7,0,3,30000,1\n9,0,1,5000,0\n"
    )
    recording = read_recording(path, RecordingFormat.ASSISTMENTS)
    begin_ms = recording.metrics[0].at_ms - 5_000
    of_7 = [
        (each.at_ms - begin_ms, each.metric_type)
        for each in recording.metrics
        if each.student_id == "user-7"
    ]
    assert of_7 == [
        (20_000, "response_time"),
        (20_000, "correct"),
        (50_000, "response_time"),
        (50_000, "error"),
        (50_000, "error"),
        (50_000, "hint"),
    ]
    of_9 = [each.metric_type for each in recording.metrics if each.student_id == "user-9"]
    assert of_9 == ["response_time", "error"]


def test_csv_takes_metrics_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.gz"
    with gzip.open(path, "wt") as log:
        log.write(
            "student_id,app_name,metric_type,value,event_time_ms\n"
            "ana,math,error,1,2000\nana,math,error,nan,2000\nana,m th,error,1,1\n"
            "ana,math,correct,0.5,1000\n"
        )
    recording = read_recording(path, RecordingFormat.CSV)
    assert recording.metrics == [
        RecordedMetric(1_000, "ana", "math", "correct", 0.5),
        RecordedMetric(2_000, "ana", "math", "error", 1.0),
    ]
    assert recording.rows_skipped == {"value is no number": 1, "app_name malformed": 1}


def test_csv_takes_iso_times_and_names_a_bad_field(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "student_id,app_name,metric_type,value,event_time_ms\n"
        "ana,math,error,1,1970-01-01T00:00:02Z\n"
        "ana,math,error,1,1970-01-01 02:00:03.5+02:00\n"
        "ana,math,error,1,1970-01-01T00:00:04\n"
        "ana,math,error,1,yesterday\n"
        "ana,math,error,1,-5\n"
    )
    recording = read_recording(path, RecordingFormat.CSV)
    assert [metric.at_ms for metric in recording.metrics] == [2_000, 3_500, 4_000]
    assert recording.rows_skipped == {
        "event_time_ms is neither milliseconds since 1970 nor an ISO 8601 time": 2
    }


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("log.tsv", b"a\tb\n1\t2\n", "lacks Anon Student Id, Step Start Time, First"),
        ("log.tsv", b"", "its first line lacks Anon Student Id"),
        ("log.tsv.gz", b"this is not gzip", "can't be read"),
        ("cut.tsv.gz", gzip.compress(TUTOR_HEADER.encode() * 1_000, mtime=0)[:60], "can't be read"),
    ],
)
def test_a_file_of_another_form_is_refused(
    tmp_path: Path, name: str, content: bytes, text: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=text):
        read_recording(path, RecordingFormat.COGNITIVE_TUTOR)


def test_a_file_that_ends_in_the_middle_is_refused(tmp_path: Path) -> None:
    row = "1\tana\t\t2006-10-26 10:00:01\t2006-10-26 10:00:01\t0\t0\t1"
    rows = "\n".join([TUTOR_HEADER, *(f"{row}{number}" for number in range(50_000))])
    path = tmp_path / "log.tsv.gz"
    path.write_bytes(gzip.compress(rows.encode())[:20_000])
    with pytest.raises(InvalidArgumentError, match="can't be read"):
        read_recording(path, RecordingFormat.COGNITIVE_TUTOR)


def metric(at_ms: int) -> RecordedMetric:
    return RecordedMetric(at_ms, "ana", "math", "error", 1.0)


def test_slices_are_cut_by_event_time_and_pauses_cost_a_second() -> None:
    times = [1_000, 1_001, 1_500, 2_000, 2_001, 2_001 + PAUSE_MS + 5_000]
    slices = list(cut([metric(at_ms) for at_ms in times]))
    assert [part.at_ms for part in slices] == [1_000, 2_000, 3_000, 3_000 + PAUSE_MS + 5_000]
    assert [[each.at_ms for each in part.metrics] for part in slices] == [
        [1_000],
        [1_001, 1_500, 2_000],
        [2_001],
        [2_001 + PAUSE_MS + 5_000],
    ]
    assert [part.wait_ms for part in slices] == [0, 1_000, 2_000, 2_000 + PAUSE_WAIT_MS]
    assert list(cut([])) == []


def test_no_metric_is_ahead_of_its_slice() -> None:
    for part in cut([metric(at_ms) for at_ms in range(1, 10_000, 37)]):
        assert all(part.at_ms - 1_000 < each.at_ms <= part.at_ms for each in part.metrics)


def test_every_outcome_of_a_batch_is_counted() -> None:
    from gaia.metrics.v1 import metrics_pb2

    counts = ReplayCounts()
    count_result(
        counts,
        10,
        metrics_pb2.BatchResult(
            status=metrics_pb2.BATCH_STATUS_ACCEPTED,
            accepted_count=7,
            late_count=2,
            rejected=[metrics_pb2.RejectedMetric(index=3, reason="TIME_IN_FUTURE")],
        ),
    )
    count_result(
        counts,
        4,
        metrics_pb2.BatchResult(status=metrics_pb2.BATCH_STATUS_REFUSED, reason="OUT_OF_RANGE"),
    )
    count_result(
        counts,
        3,
        metrics_pb2.BatchResult(status=metrics_pb2.BATCH_STATUS_DUPLICATE, accepted_count=3),
    )
    assert (counts.sent, counts.accepted, counts.late) == (17, 10, 2)
    assert (counts.rejected, counts.refused, counts.duplicate_batches) == (1, 4, 1)
    assert counts.reasons == {"TIME_IN_FUTURE": 1, "OUT_OF_RANGE": 4}


@needs_sample
def test_the_sample_of_real_students_is_read_whole() -> None:
    recording = read_recording(SAMPLE, RecordingFormat.COGNITIVE_TUTOR)
    assert (recording.rows_read, recording.rows_used) == (18_220, 18_220)
    assert len(recording.students) == 11
    times = [each.at_ms for each in recording.metrics]
    assert times == sorted(times)
    slices = list(cut(recording.metrics))
    assert sum(len(part.metrics) for part in slices) == len(recording.metrics)
    assert slices[-1].wait_ms < 70 * 3_600_000
