"""`gaia sessions`: the AI worker sessions."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from gaia_grpc.cli.options import (
    DEFAULT_CLUSTER,
    ClusterOption,
    CountOption,
    JsonOption,
    LimitOption,
)
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

if TYPE_CHECKING:
    from gaia.session.v1 import session_pb2 as session_messages

app = typer.Typer(help="AI worker sessions.", cls=ListByDefault, rich_markup_mode=None)

LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY[=VALUE]", help="Only with this label; repeatable."),
]


@app.command("list")
def list_sessions(
    health: Annotated[
        str, typer.Option("--health", help="Only healthy, degraded or failed ones.")
    ] = "",
    provider: Annotated[str, typer.Option("--provider", help="Only of this provider.")] = "",
    tier: Annotated[str, typer.Option("--tier", help="Only of this tier: manager or worker.")] = "",
    specialty: Annotated[str, typer.Option("--specialty", help="Only of this specialty.")] = "",
    label: LabelOption = None,
    limit: LimitOption = 1_000,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """List sessions in the order of their ids."""
    from gaia.session.v1 import session_pb2

    from gaia_grpc.cli.ask import ask_all
    from gaia_grpc.client.resources import session_labels

    request = session_pb2.ListSessionsRequest(
        provider=provider,
        health=_health(health),
        tier=_tier(tier),
        specialty=specialty,
        labels=session_labels(_labels(label)),
    )
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
    print_cut_off(
        found, len(found.sessions), " or --health, --provider, --tier, --specialty, --label"
    )


@app.command("watch")
def watch_sessions(
    health: Annotated[
        str, typer.Option("--health", help="Only healthy, degraded or failed ones.")
    ] = "",
    provider: Annotated[str, typer.Option("--provider", help="Only of this provider.")] = "",
    tier: Annotated[str, typer.Option("--tier", help="Only of this tier: manager or worker.")] = "",
    specialty: Annotated[str, typer.Option("--specialty", help="Only of this specialty.")] = "",
    label: LabelOption = None,
    count: CountOption = None,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Print all sessions and then each change, until Ctrl-C; goes on at another peer by itself."""
    from gaia_grpc.cli.follow import follow

    chosen = _health(health)
    chosen_tier = _tier(tier)
    labels = _labels(label)
    follow(
        cluster,
        lambda client: client.sessions.watch(
            provider=provider,
            health=chosen,
            tier=chosen_tier,
            specialty=specialty,
            labels=labels,
        ),
        "session",
        (("SESSION", 14), ("HEALTH", 8), ("TASKS", 7), ("SPECIALTY", 10), ("TIER", 7),
         ("NAME", 0)),
        _watched_cells,
        count,
        json_output,
    )  # fmt: skip


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
            ("labels", " ".join(f"{one.key}={one.value}" for one in session.labels) or "-"),
            ("incarnation", session.incarnation),
            ("tasks", f"{session.claimed_tasks} of {session.max_concurrent_tasks}"),
            (f"registered ({LOG_TIME}, UTC)", time_text(session.register_time)),
            (f"last heartbeat ({LOG_TIME}, UTC)", time_text(session.last_heartbeat_time)),
        ),
        "",
    )


@app.command("score")
@app.command("scores", hidden=True)  # its name in earlier versions
def score_sessions(
    affinity: Annotated[str, typer.Argument(metavar="AFFINITY")] = "general",
    limit: LimitOption = 100,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Show how well each session fits an affinity, best first, with the parts of the score."""
    from gaia.session.v1 import session_pb2

    from gaia_grpc.cli.ask import ask

    request = session_pb2.ScoreSessionsRequest(affinity=affinity, page_size=min(limit, 1_000))
    found = ask(cluster, lambda peer: peer.sessions.ScoreSessions, request)
    if json_output:
        print_json(found)
        return
    found_all = len(found.scores) < request.page_size
    print_table(
        ("SCORE", "AFFINITY", "CAPACITY", "HEALTH", "FREE", "ELIGIBLE", "SESSION", "NAME", "WHY"),
        (
            (
                f"{score.score:.3f}",
                f"{score.affinity_score:.1f}",
                f"{score.capacity_score:.2f}",
                f"{score.health_score:.1f}",
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


def _labels(words: list[str] | None) -> dict[str, str]:
    """Labels by key; an empty value is any."""
    found: dict[str, str] = {}
    for word in words or ():
        key, _, value = word.partition("=")
        if not key or key in found:
            raise ConfigError(f"--label: {word!r} is no KEY[=VALUE], or the key is there twice")
        found[key] = value
    return found


def _health(word: str) -> session_messages.Health.ValueType:
    """The health that a word names; empty is any."""
    from gaia.session.v1 import session_pb2

    try:
        return session_pb2.Health.Value(f"HEALTH_{(word or 'unspecified').upper()}")
    except ValueError as error:
        raise ConfigError("--health must be healthy, degraded or failed") from error


def _tier(word: str) -> session_messages.Tier.ValueType:
    """The tier that a word names; empty is any."""
    from gaia.session.v1 import session_pb2

    try:
        return session_pb2.Tier.Value(f"TIER_{(word or 'unspecified').upper()}")
    except ValueError as error:
        raise ConfigError("--tier must be manager or worker") from error


def _watched_cells(session: session_messages.Session) -> tuple[object, ...]:
    from gaia.session.v1 import session_pb2

    return (
        session.session_id,
        enum_word(session_pb2.Health.Name, session.health, "HEALTH"),
        f"{session.claimed_tasks}/{session.max_concurrent_tasks}",
        session.specialty,
        enum_word(session_pb2.Tier.Name, session.tier, "TIER"),
        session.name,
    )
