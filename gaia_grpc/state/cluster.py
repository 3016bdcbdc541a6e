"""The founding, the restoring, the passing of log time, the feature level and the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gaia.cluster.v1 import cluster_pb2
from gaia.command.v1 import command_pb2, query_pb2

from gaia_grpc.errors import InvalidArgumentError, invariant
from gaia_grpc.state import refusal, topics
from gaia_grpc.state.context import CommandHandler, Context, QueryHandler
from gaia_grpc.state.feature_levels import FEATURE_LEVEL, FIRST_LEVEL
from gaia_grpc.state.settings import Settings, format_setting, known_at
from gaia_grpc.state.snapshot import Part

RESTORE_LEVEL = 2
"""The level of the first version that knows RestoreCluster."""

TIMERS_PER_ADVANCE = 500
"""Bounds one apply; what is left stays due and comes with the next AdvanceTime."""


class ClusterTable:
    """Handles what is about the cluster itself."""

    # All of its state is in the header of a snapshot.
    parts: Sequence[Part] = ()

    def __init__(self, context: Context) -> None:
        self._context = context
        self.commands: Mapping[str, CommandHandler] = {
            "found_cluster": self.found_cluster,
            "advance_time": self.advance_time,
            "update_settings": self.update_settings,
            "raise_feature_level": self.raise_feature_level,
            "restore_cluster": self.restore_cluster,
        }
        self.queries: Mapping[str, QueryHandler] = {"get_settings": self.get_settings}

    def settings_changed(self) -> None:
        """Nothing here depends on them."""

    def found_cluster(self, body: command_pb2.FoundCluster) -> command_pb2.CommandResult:
        """Names the cluster and gives the first settings; their version stays 0."""
        understood(body.feature_level)
        context = self._context
        if context.cluster_id:
            raise refusal.refused(
                refusal.FAILED_PRECONDITION,
                "ALREADY_FOUNDED",
                f"the cluster {context.cluster_id} is founded",
            )
        if not body.cluster_id:
            raise refusal.invalid("cluster_id", "cluster_id is empty")
        level = max(body.feature_level, FIRST_LEVEL)
        context.settings = self._changed(body.settings, "settings", version=0, level=level)
        context.cluster_id = body.cluster_id
        context.feature_level = level
        context.touch(topics.SETTINGS)
        return command_pb2.CommandResult(settings=self._settings_message())

    def restore_cluster(self, body: command_pb2.RestoreCluster) -> command_pb2.CommandResult:
        """The state of a backup goes on as a cluster with an id of its own."""
        context = self._context
        if not body.cluster_id or body.cluster_id == body.source_cluster_id:
            raise refusal.invalid("cluster_id", "the new cluster needs an id of its own")
        if body.source_cluster_id != context.cluster_id:
            raise refusal.refused(
                refusal.FAILED_PRECONDITION,
                "OTHER_CLUSTER",
                f"this is the state of the cluster {context.cluster_id}, "
                f"not of {body.source_cluster_id}",
            )
        context.cluster_id = body.cluster_id
        # Who came before this command stops at it: no such peer may join.
        context.feature_level = max(context.feature_level, RESTORE_LEVEL)
        return command_pb2.CommandResult(done=command_pb2.Done())

    def raise_feature_level(self, body: command_pb2.RaiseFeatureLevel) -> command_pb2.CommandResult:
        """Raises the cluster's level; two leaders may have asked for the same."""
        understood(body.level)
        level = self._context.feature_level
        if body.level < level:
            raise refusal.refused(
                refusal.FAILED_PRECONDITION,
                "FEATURE_LEVEL",
                f"the cluster has the feature level {level}, which can't be lowered",
                details={"feature_level": str(level)},
            )
        self._context.feature_level = body.level
        return command_pb2.CommandResult(done=command_pb2.Done())

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
        level = context.feature_level
        context.settings = self._changed(body.changes, "changes", version=version + 1, level=level)
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
        self,
        changes: Sequence[cluster_pb2.SettingChange],
        field: str,
        *,
        version: int,
        level: int,
    ) -> Settings:
        try:
            return self._context.settings.changed(
                [(change.name, change.value) for change in changes],
                version=version,
                field=field,
                level=level,
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
                for definition in known_at(self._context.feature_level)
            ],
        )


def understood(level: int) -> None:
    """Stops a peer that the cluster has left behind: others accept what it can't."""
    invariant(
        level <= FEATURE_LEVEL,
        f"the cluster needs the feature level {level}; this version understands {FEATURE_LEVEL}",
    )
