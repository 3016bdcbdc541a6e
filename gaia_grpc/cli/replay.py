"""`gaia replay`: recorded logs of real students through the real path."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gaia_grpc.cli.options import JsonOption, OwnClusterOption, parse_cluster, run_async
from gaia_grpc.cli.output import moment_text
from gaia_grpc.errors import ConfigError, InvalidArgumentError

if TYPE_CHECKING:
    from gaia.alert.v1 import alert_pb2

    from gaia_grpc.classroom.recordings import Recording
    from gaia_grpc.classroom.replay import ReplayCounts
    from gaia_grpc.client import AlertListener

REPORT_INTERVAL_S = 1.0
ALERTS_TIMEOUT_S = 15.0
POLL_INTERVAL_S = 0.1
FORMATS = ("assistments", "cognitive-tutor", "csv")


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The log; .gz is unpacked.")],
    log_format: Annotated[
        str, typer.Option("--format", help="assistments, cognitive-tutor or csv.")
    ],
    speed: Annotated[
        float,
        typer.Option("--speed", min=0.0, help="Log seconds in a second; 0 does not wait at all."),
    ] = 60.0,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Read only the first rows.")
    ] = None,
    cluster: OwnClusterOption = "",
    json_output: JsonOption = False,
) -> int:
    """Stream a recorded log on a timeline of its own. Exits with 1 on a mismatch.

    Nights and weekends are skipped; event times stay as recorded. The peers are started for it and
    thrown away, unless --cluster or GAIA_CLUSTER names others.

    The columns of csv, in any order and named in the first line: student_id, app_name, metric_type
    (error, hint, correct, response_time, ...), value, event_time_ms (milliseconds since 1970, or
    ISO 8601 as in 2026-03-02T09:30:00Z; UTC where no zone is given).
    """
    from gaia_grpc.classroom.recordings import RecordingFormat, read_recording
    from gaia_grpc.cli.rpc import require_cluster

    if log_format not in FORMATS:
        raise ConfigError(f"--format must be one of {', '.join(FORMATS)}")
    try:
        recording = read_recording(file, RecordingFormat(log_format), limit)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or 'cannot be read'}") from error
    if not recording.metrics:
        skipped = [f"{count} rows: {why}" for why, count in sorted(recording.rows_skipped.items())]
        reasons = f" ({'; '.join(skipped)})" if skipped else ""
        raise InvalidArgumentError(f"{file} holds no row that can be replayed{reasons}")
    if cluster:
        require_cluster(cluster, quiet=json_output)
    outcome = run_async(_replay(recording, cluster, speed, quiet=json_output))
    rows = _rows(recording, outcome)
    if json_output:
        _print_json(recording, outcome, rows)
    else:
        _print_summary(recording, outcome, rows, lasting=bool(cluster))
    return 0 if all(ok for *_, ok in rows) else 1


class _Outcome:
    """What a replay found."""

    def __init__(self, timeline_id: str, counts: ReplayCounts) -> None:
        self.timeline_id = timeline_id
        self.counts = counts
        self.alerts: list[alert_pb2.Alert] = []
        self.opened: list[str] = []
        """Ids of the alerts whose opening came over the stream."""
        self.sequences: list[int] = []
        self.wall_s = 0.0


async def _replay(recording: Recording, cluster: str, speed: float, *, quiet: bool) -> _Outcome:
    from gaia_grpc.classroom.replay import Replayer, cut
    from gaia_grpc.client import Client
    from gaia_grpc.testing.cluster import Cluster

    async with AsyncExitStack() as stack:
        if cluster:
            addresses: Sequence[str] = parse_cluster(cluster)
        else:
            if not quiet:
                print("starting three peers ...", flush=True)
            addresses = (await stack.enter_async_context(Cluster(3))).addresses
        client = await stack.enter_async_context(Client.connect(addresses, timeout=60.0))
        epoch = time.time_ns() // 1_000_000
        run_id = f"replay-{epoch}"
        listener = await stack.enter_async_context(client.alerts.listen(timeline_id=run_id))
        replayer = Replayer(
            client,
            timeline_id=run_id,
            classroom_id=run_id,
            source_id=run_id,
            source_epoch=epoch,
            speed=speed,
        )
        outcome = _Outcome(run_id, replayer.counts)
        follower = asyncio.create_task(_follow(listener, outcome, quiet=quiet))
        begin_s = time.monotonic()
        try:
            await replayer.run(
                list(cut(recording.metrics)), _reporter(replayer.counts, recording, quiet=quiet)
            )
            outcome.wall_s = time.monotonic() - begin_s
            outcome.alerts = [each async for each in client.alerts.list(timeline_id=run_id)]
            await _settle(listener, outcome.alerts)
        finally:
            follower.cancel()
            await asyncio.wait({follower})
        if not follower.cancelled():
            follower.result()
        return outcome


async def _follow(listener: AlertListener, outcome: _Outcome, *, quiet: bool) -> None:
    from gaia.alert.v1 import alert_pb2

    from gaia_grpc.classroom.staff import describe

    async for event in listener:
        outcome.sequences.append(event.sequence)
        if event.change == alert_pb2.ALERT_CHANGE_OPENED:
            outcome.opened.append(event.alert.alert_id)
            if not quiet:
                print(f"{moment_text(event.alert.detected_at_ms)}  {describe(event)}", flush=True)


async def _settle(listener: AlertListener, alerts: Sequence[alert_pb2.Alert]) -> None:
    """Waits until the stream has brought everything that the list shows."""
    through = max((alert.last_sequence for alert in alerts), default=0)
    deadline_s = time.monotonic() + ALERTS_TIMEOUT_S
    while True:
        if (listener.cursor or 0) >= through or time.monotonic() > deadline_s:
            return
        await asyncio.sleep(POLL_INTERVAL_S)


def _reporter(counts: ReplayCounts, recording: Recording, *, quiet: bool) -> Any:
    """Prints how far the replay is, once in REPORT_INTERVAL_S."""
    next_s = time.monotonic() + REPORT_INTERVAL_S

    def report() -> None:
        nonlocal next_s
        if quiet or time.monotonic() < next_s:
            return
        next_s = time.monotonic() + REPORT_INTERVAL_S
        print(
            f"{moment_text(counts.at_ms)}  "
            f"{counts.sent:,} of {len(recording.metrics):,} metrics sent",
            flush=True,
        )

    return report


# --- the summary ----------------------------------------------------------------------------------


def _rows(recording: Recording, outcome: _Outcome) -> list[tuple[str, str, str, bool]]:
    """(what, expected, found, ok)."""
    counts = outcome.counts
    skipped = sum(recording.rows_skipped.values())
    ended = counts.accepted + counts.late + counts.rejected + counts.refused
    alert_ids = sorted(alert.alert_id for alert in outcome.alerts)
    unique = len(set(outcome.sequences))
    pairs: list[tuple[str, int, int]] = [
        ("rows read = used + skipped", recording.rows_read, recording.rows_used + skipped),
        ("metrics made of them = sent", len(recording.metrics), counts.sent),
        ("metrics sent = accepted + late + rejected + refused", counts.sent, ended),
        ("alerts raised = opened on the stream", len(alert_ids), len(outcome.opened)),
        ("alert events received = different ones", len(outcome.sequences), unique),
    ]
    rows = [
        (what, f"{expected:,}", f"{found:,}", expected == found) for what, expected, found in pairs
    ]
    same = alert_ids == sorted(outcome.opened)
    rows.append(
        ("the same alerts on the list and on the stream", "yes", "yes" if same else "no", same)
    )
    return rows


def _print_summary(
    recording: Recording,
    outcome: _Outcome,
    rows: Sequence[tuple[str, str, str, bool]],
    *,
    lasting: bool,
) -> None:
    from gaia_grpc.classroom.observe import quantiles
    from gaia_grpc.cli.output import print_table

    counts = outcome.counts
    print()
    print_table(
        ("", "WHAT", "EXPECTED", "FOUND"),
        (("ok" if ok else "MISMATCH", what, expected, found) for what, expected, found, ok in rows),
        "",
    )
    print()
    print_table(
        ("METRICS", "COUNT"),
        (
            ("accepted into their window", f"{counts.accepted:,}"),
            ("late: counted, in the history only", f"{counts.late:,}"),
            ("rejected one by one", f"{counts.rejected:,}"),
            ("refused with their batch", f"{counts.refused:,}"),
            *((f"  because of {reason}", f"{counts.reasons[reason]:,}")
              for reason in sorted(counts.reasons)),
        ),
        "",
    )  # fmt: skip
    print()
    by_pattern = Counter(alert.pattern for alert in outcome.alerts)
    print_table(
        ("PATTERN", "ALERTS"),
        ((pattern, by_pattern[pattern]) for pattern in sorted(by_pattern)),
        "no alerts",
    )
    print()
    calls = quantiles(counts.call_seconds)
    print(
        f"{len(recording.students)} students, {counts.sent:,} metrics in {outcome.wall_s:.1f} s "
        f"({counts.sent / max(outcome.wall_s, 0.001):,.0f} a second), {counts.calls} calls, "
        f"{calls.text()}"
    )
    for reason, count in sorted(recording.rows_skipped.items()):
        print(f"{count} rows skipped: {reason}")
    if lasting:
        print(f"look again: gaia alerts list --timeline {outcome.timeline_id}")


def _print_json(
    recording: Recording, outcome: _Outcome, rows: Sequence[tuple[str, str, str, bool]]
) -> None:
    import dataclasses

    from gaia_grpc.cli.output import print_plain_json

    counts = dataclasses.asdict(outcome.counts)
    counts.pop("call_seconds")
    print_plain_json(
        {
            "timelineId": outcome.timeline_id,
            "rowsRead": recording.rows_read,
            "rowsSkipped": recording.rows_skipped,
            "students": len(recording.students),
            "counts": counts,
            "alertsByPattern": dict(Counter(alert.pattern for alert in outcome.alerts)),
            "rows": [
                {"what": what, "expected": expected, "found": found, "ok": ok}
                for what, expected, found, ok in rows
            ],
            "wallSeconds": outcome.wall_s,
            "reconciled": all(ok for *_, ok in rows),
        }
    )
