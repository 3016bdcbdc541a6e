"""What a core refuses to be built with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gaia_grpc.errors import ConfigError
from gaia_grpc.raft.config import RaftConfig
from gaia_grpc.raft.types import NodeId
from tests.support.cluster import config, names


def test_a_good_configuration_lists_the_other_members_sorted() -> None:
    good = config("n2", names(3), learners=["a1"])
    assert good.peers == ("a1", "n1", "n3")
    assert config("a1", names(3), learners=["a1"]).peers == names(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"voters": ("n2", "n1", "n3")}, "sorted"),
        ({"voters": ("n1", "n1", "n3")}, "unique"),
        ({"voters": ("", "n1", "n3")}, "not empty"),
        ({"voters": ("n1", "n2")}, r"1, 3, 5, ... voters, not 2"),
        ({"voters": ()}, "not 0"),
        ({"learners": ("n3",)}, "not both"),
        ({"learners": ("b", "a")}, "sorted"),
        ({"node_id": "n9"}, "not a member"),
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
