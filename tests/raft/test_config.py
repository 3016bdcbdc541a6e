"""What a core refuses to be built with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gaia_grpc.errors import ConfigError
from gaia_grpc.raft.config import RaftConfig
from gaia_grpc.raft.membership import NOBODY
from gaia_grpc.raft.types import Members, NodeId
from tests.support.cluster import config, members, names


def test_a_peer_that_joins_knows_nobody_yet() -> None:
    joiner = replace(config("n4", names(3)), initial_members=NOBODY)
    assert joiner.initial_members == Members((), ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initial_members": members(["n2", "n1", "n3"])}, "sorted"),
        ({"initial_members": members(["n1", "n1", "n3"])}, "unique"),
        ({"initial_members": members(["", "n1", "n3"])}, "not empty"),
        ({"initial_members": members([], ["n1"])}, "at least one voter"),
        ({"initial_members": members(["n1", "n3"], ["n3"])}, "not both"),
        ({"initial_members": members(["n1"], ["b", "a"])}, "sorted"),
        ({"node_id": ""}, "a peer needs a name"),
        ({"heartbeat_ticks": 0}, "heartbeat_ticks"),
        ({"heartbeat_ticks": 10}, "election_ticks_min"),
        ({"election_ticks_max": 9}, "election_ticks_max"),
        ({"max_entries_per_append": 0}, "max_entries_per_append"),
        ({"max_bytes_per_append": 0}, "max_bytes_per_append"),
        ({"max_inflight_appends": 0}, "max_inflight_appends"),
    ],
)
def test_a_bad_configuration_is_refused(change: dict[str, Any], message: str) -> None:
    good: RaftConfig = config("n1", (NodeId("n1"), NodeId("n2"), NodeId("n3")))
    with pytest.raises(ConfigError, match=message):
        replace(good, **change)
