"""Replicated settings as ingress needs them: this peer's own, read again when they changed."""

from __future__ import annotations

from gaia.cluster.v1 import cluster_pb2
from gaia.command.v1 import query_pb2

from gaia_grpc.node.api import ReadConsistency, ReplicatedLog
from gaia_grpc.services.ingress import read
from gaia_grpc.state.settings import parse_setting
from gaia_grpc.state.topics import SETTINGS

READ_TIMEOUT_S = 1.0


class SettingsCache:
    """Values by name. They may lag behind the leader's: nothing that must agree hangs on them."""

    def __init__(self, log: ReplicatedLog) -> None:
        self._log = log
        self._version: int | None = None
        self._values: dict[str, str] = {}

    async def milliseconds(self, name: str) -> int:
        """A duration; raises `UnavailableError` where the peer has not started."""
        await self._refresh()
        return int(parse_setting(name, self._values[name]))

    async def number(self, name: str, default: int) -> int:
        """A whole number; `default` where the cluster's feature level has no such setting."""
        await self._refresh()
        return int(parse_setting(name, self._values[name])) if name in self._values else default

    async def _refresh(self) -> None:
        version = self._log.topic_version(SETTINGS)
        if version != self._version:
            query = query_pb2.Query(get_settings=cluster_pb2.GetSettingsRequest())
            result = await read(self._log, query, ReadConsistency.LOCAL, READ_TIMEOUT_S)
            settings = result.get_settings.settings.settings
            self._values = {setting.name: setting.value for setting in settings}
            self._version = version
