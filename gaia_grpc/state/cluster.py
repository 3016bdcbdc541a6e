"""The founding, the passing of log time and the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gaia.cluster.v1 import cluster_pb2
from gaia.command.v1 import command_pb2, query_pb2

from gaia_grpc.errors import InvalidArgumentError
from gaia_grpc.state import refusal, topics
from gaia_grpc.state.context import CommandHandler, Context, QueryHandler
from gaia_grpc.state.settings import DEFINITIONS, Settings, format_setting

TIMERS_PER_ADVANCE = 500
"""Bounds one apply; what is left stays due and comes with the next AdvanceTime."""


class ClusterTable:
    """Handles FoundCluster, AdvanceTime, UpdateSettings and GetSettings."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.commands: Mapping[str, CommandHandler] = {
            "found_cluster": self.found_cluster,
            "advance_time": self.advance_time,
            "update_settings": self.update_settings,
        }
        self.queries: Mapping[str, QueryHandler] = {"get_settings": self.get_settings}

    def settings_changed(self) -> None:
        """Nothing here depends on them."""

    def found_cluster(self, body: command_pb2.FoundCluster) -> command_pb2.CommandResult:
        """Names the cluster and gives the first settings; their version stays 0."""
        context = self._context
        if context.cluster_id:
            raise refusal.refused(
                refusal.FAILED_PRECONDITION,
                "ALREADY_FOUNDED",
                f"the cluster {context.cluster_id} is founded",
            )
        if not body.cluster_id:
            raise refusal.invalid("cluster_id", "cluster_id is empty")
        context.settings = self._changed(body.settings, "settings", version=0)
        context.cluster_id = body.cluster_id
        context.touch(topics.SETTINGS)
        return command_pb2.CommandResult(settings=self._settings_message())

    def advance_time(self, body: command_pb2.AdvanceTime) -> command_pb2.CommandResult:
        """Everything that is due happens, in the order of the timers."""
        del body
        self._context.timers.fire_due(self._context.now_ms, TIMERS_PER_ADVANCE)
        return command_pb2.CommandResult(done=command_pb2.Done())

    def update_settings(self, body: command_pb2.UpdateSettings) -> command_pb2.CommandResult:
        """Changes all of the named settings or none."""
        context = self._context
        version = context.settings.version
        if body.HasField("expected_version") and body.expected_version != version:
            raise refusal.refused(
                refusal.FAILED_PRECONDITION,
                "VERSION_MISMATCH",
                f"the settings have version {version}, not {body.expected_version}",
                details={"version": str(version)},
            )
        if not body.changes:
            raise refusal.invalid("changes", "no changes")
        context.settings = self._changed(body.changes, "changes", version=version + 1)
        context.touch(topics.SETTINGS)
        return command_pb2.CommandResult(settings=self._settings_message())

    def get_settings(
        self, body: cluster_pb2.GetSettingsRequest, now_ms: int
    ) -> query_pb2.QueryResult:
        """All settings in the order of their names."""
        del body, now_ms
        answer = cluster_pb2.GetSettingsResponse(settings=self._settings_message())
        return query_pb2.QueryResult(get_settings=answer)

    def _changed(
        self, changes: Sequence[cluster_pb2.SettingChange], field: str, *, version: int
    ) -> Settings:
        try:
            return self._context.settings.changed(
                [(change.name, change.value) for change in changes], version=version, field=field
            )
        except InvalidArgumentError as error:
            violation = error.violations[0]
            raise refusal.invalid(violation.field, violation.description) from error

    def _settings_message(self) -> cluster_pb2.ClusterSettings:
        settings = self._context.settings
        return cluster_pb2.ClusterSettings(
            version=settings.version,
            settings=[
                cluster_pb2.Setting(
                    name=definition.name,
                    value=format_setting(definition, settings.value(definition.name)),
                    default_value=definition.default,
                    description=definition.description,
                )
                for definition in DEFINITIONS
            ],
        )
