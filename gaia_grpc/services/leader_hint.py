"""The leader's client address for the trailer of every answer, without a status a call."""

from __future__ import annotations

import time

from gaia_grpc.node.api import ReplicatedLog

KEEP_S = 0.010
"""A hint may be wrong anyway: a client that follows an old one is forwarded."""


class LeaderHint:
    """Calls give the address; empty where no leader is known."""

    def __init__(self, log: ReplicatedLog) -> None:
        self._log = log
        self._address = ""
        self._until_s = 0.0

    def __call__(self) -> str:
        now_s = time.monotonic()
        if now_s >= self._until_s:
            self._address = self._log.status().leader_address
            self._until_s = now_s + KEEP_S
        return self._address
