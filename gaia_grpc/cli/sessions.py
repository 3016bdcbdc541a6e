"""`gaia sessions`: the AI worker sessions."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gaia_grpc.cli.options import DEFAULT_CLUSTER, ClusterOption, JsonOption, LimitOption
from gaia_grpc.cli.output import (
    LOG_TIME,
    ListByDefault,
    enum_word,
    print_cut_off,
    print_json,
    print_table,
    time_text,
)
from gaia_grpc.errors import ConfigError

app = typer.Typer(help="AI worker sessions.", cls=ListByDefault, rich_markup_mode=None)


@app.command("list")
def list_sessions(
    health: Annotated[
        str, typer.Option("--health", help="Only healthy, degraded or failed ones.")
    ] = "",
    provider: Annotated[str, typer.Option("--provider", help="Only of this provider.")] = "",
    limit: LimitOption = 1_000,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """List sessions in the order of their ids."""
    from gaia.session.v1 import session_pb2

    from gaia_grpc.cli.ask import ask_all

    request = session_pb2.ListSessionsRequest(provider=provider)
    if health:
        try:
            request.health = session_pb2.Health.Value(f"HEALTH_{health.upper()}")
        except ValueError as error:
            raise ConfigError("--health must be healthy, degraded or failed") from error
    found = ask_all(cluster, lambda peer: peer.sessions.ListSessions, request, "sessions", limit)
    if json_output:
        print_json(found)
        return
    print_table(
        (
            "SESSION",
            "NAME",
            "TIER",
            "PROVIDER",
            "SPECIALTY",
            "HEALTH",
            "TASKS",
            f"LAST HEARTBEAT ({LOG_TIME}, UTC)",
        ),
        (
            (
                session.session_id,
                session.name,
                enum_word(session_pb2.Tier.Name, session.tier, "TIER"),
                session.provider or "-",
                session.specialty,
                enum_word(session_pb2.Health.Name, session.health, "HEALTH"),
                f"{session.claimed_tasks}/{session.max_concurrent_tasks}",
                time_text(session.last_heartbeat_time),
            )
            for session in found.sessions
        ),
        "no sessions",
    )
    print_cut_off(found, len(found.sessions), " or --health, --provider")


@app.command("get")
def get_session(
    session_id: Annotated[str, typer.Argument(metavar="SESSION_ID")],
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Show one session."""
    from gaia.session.v1 import session_pb2

    from gaia_grpc.cli.ask import ask

    request = session_pb2.GetSessionRequest(session_id=session_id)
    session = ask(cluster, lambda peer: peer.sessions.GetSession, request).session
    if json_output:
        print_json(session)
        return
    print_table(
        ("FIELD", "VALUE"),
        (
            ("session_id", session.session_id),
            ("name", session.name),
            ("tier", enum_word(session_pb2.Tier.Name, session.tier, "TIER")),
            ("provider", session.provider or "-"),
            ("specialty", session.specialty),
            ("health", enum_word(session_pb2.Health.Name, session.health, "HEALTH")),
            ("incarnation", session.incarnation),
            ("tasks", f"{session.claimed_tasks} of {session.max_concurrent_tasks}"),
            (f"registered ({LOG_TIME}, UTC)", time_text(session.register_time)),
            (f"last heartbeat ({LOG_TIME}, UTC)", time_text(session.last_heartbeat_time)),
        ),
        "",
    )


@app.command("scores")
def score_sessions(
    affinity: Annotated[str, typer.Argument(metavar="AFFINITY")] = "general",
    limit: LimitOption = 100,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Show how well each session fits an affinity, best first."""
    from gaia.session.v1 import session_pb2

    from gaia_grpc.cli.ask import ask

    request = session_pb2.ScoreSessionsRequest(affinity=affinity, page_size=min(limit, 1_000))
    found = ask(cluster, lambda peer: peer.sessions.ScoreSessions, request)
    if json_output:
        print_json(found)
        return
    found_all = len(found.scores) < request.page_size
    print_table(
        ("SCORE", "FREE", "ELIGIBLE", "SESSION", "NAME", "WHY"),
        (
            (
                f"{score.affinity_score:.1f}",
                score.free_capacity,
                "yes" if score.eligible else "no",
                score.session.session_id,
                score.session.name,
                score.explanation,
            )
            for score in found.scores
        ),
        "no sessions",
    )
    if not found_all:
        print(f"showing {len(found.scores):,}, there may be more: --limit N", file=sys.stderr)
