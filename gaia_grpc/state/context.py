"""What every table of the state machine shares, and what a table offers to the machine.

A table (sessions, tasks, metrics, alerts, ...) is built once with the `Context`, registers its
timer kinds in its constructor, and names its handlers:

- `commands`: body name in `gaia.command.v1.Command` -> handler(body) -> CommandResult. The handler
  raises `Refused` (refusal.py) before it changes anything.
- `queries`: body name in `gaia.command.v1.Query` -> handler(body, now_ms) -> QueryResult. `now_ms`
  is the log time to look from, at or after `context.now_ms`. A query changes nothing.
- `settings_changed()`: called after an UpdateSettings or FoundCluster was applied.
- `parts`: its sections of a snapshot. A timer must be a function of them and the settings.

Names without a handler are refused as UNIMPLEMENTED.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

from gaia.command.v1 import command_pb2, query_pb2

from gaia_grpc.state.feature_levels import FIRST_LEVEL
from gaia_grpc.state.settings import Settings
from gaia_grpc.state.snapshot import Part
from gaia_grpc.state.timers import Timers

CommandHandler: TypeAlias = Callable[[Any], command_pb2.CommandResult]
QueryHandler: TypeAlias = Callable[[Any, int], query_pb2.QueryResult]


class Table(Protocol):
    """One part of the state with its commands, queries and timers."""

    @property
    def commands(self) -> Mapping[str, CommandHandler]:
        """Handlers by the name of the command's body."""
        ...

    @property
    def queries(self) -> Mapping[str, QueryHandler]:
        """Handlers by the name of the query's body."""
        ...

    def settings_changed(self) -> None:
        """Settings have new values: set again what depends on them."""
        ...

    @property
    def parts(self) -> Sequence[Part]:
        """What it adds to a snapshot, in a fixed order."""
        ...


SESSION_FAILED: Final = "session_failed"
TASK_DEAD_LETTERED: Final = "task_dead_lettered"
PEER_LOST: Final = "peer_lost"


class Reporter(Protocol):
    """Who hears of what happens to sessions, tasks and members."""

    def __call__(self, pattern: str, subject: str, *, over: bool = False) -> None:
        """See `Context.report`."""
        ...


def _nobody(pattern: str, subject: str, *, over: bool = False) -> None:
    del pattern, subject, over


class Context:
    """The command in hand and the shared parts. Tables read it; only the machine moves it on.

    `now_ms` is the log time, `index` the log index and `wall_ms` the leader's wall time (display
    only) of the command being applied; `principal` is who asked.
    """

    __slots__ = (
        "_touched",
        "cluster_id",
        "feature_level",
        "index",
        "now_ms",
        "principal",
        "reporter",
        "settings",
        "timers",
        "wall_ms",
    )

    def __init__(self) -> None:
        self.now_ms = 0
        self.index = 0
        self.wall_ms = 0
        self.principal = ""
        self.cluster_id = ""
        self.feature_level = FIRST_LEVEL
        self.settings = Settings()
        self.timers = Timers()
        self._touched: dict[str, None] = {}
        self.reporter: Reporter = _nobody

    def report(self, pattern: str, subject: str, *, over: bool = False) -> None:
        """Tells who runs the cluster (operational_alerts.py): something happened, or is over."""
        self.reporter(pattern, subject, over=over)

    def touch(self, topic: str) -> None:
        """Wakes who watches `topic` (topics.py) once the entry is applied."""
        self._touched[topic] = None

    def take_touched(self) -> list[str]:
        """Topics touched since the last call, each once, in the order of their first touch."""
        touched = list(self._touched)
        self._touched.clear()
        return touched
