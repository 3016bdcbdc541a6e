"""Where the configuration of a peer comes from, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gaia_grpc.config import ConsensusConfig, LimitsConfig, load_peer_config, split_address
from gaia_grpc.errors import ConfigError

FLAGS: dict[str, object] = {
    "node_id": "n1",
    "listen": "127.0.0.1:5001",
    "peer_listen": "127.0.0.1:7001",
    "peers": [("n2", "127.0.0.1:7002"), ("n1", "127.0.0.1:7001")],
    "data_dir": "data",
}

FILE = """
node_id = "n9"
listen = "127.0.0.1:5009"
peer_listen = "127.0.0.1:7009"
data_dir = "from file"
bootstrap = true
log_level = "debug"
[peers]
n9 = "127.0.0.1:7009"
n8 = "127.0.0.1:7008"
[settings]
"task.max_retries" = "5"
[consensus]
tick_ms = 5
[limits]
max_batch_items = 7
max_page_size = 200
"""


def load(
    flags: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
    config_file: Path | None = None,
) -> Any:
    return load_peer_config(
        FLAGS if flags is None else flags, environ=environ or {}, config_file=config_file
    )


def test_flags_alone() -> None:
    config = load()
    assert (config.node_id, config.listen, config.bootstrap) == ("n1", "127.0.0.1:5001", False)
    assert config.peers == (("n1", "127.0.0.1:7001"), ("n2", "127.0.0.1:7002"))
    assert config.peer_ids == ("n1", "n2")
    assert config.consensus == ConsensusConfig()
    assert config.limits == LimitsConfig()


def test_a_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "gaia.toml"
    path.write_text(FILE)
    config = load({}, config_file=path)
    assert config == load({}, {"GAIA_CONFIG": str(path)})
    assert (config.node_id, config.data_dir, config.bootstrap) == ("n9", "from file", True)
    assert config.settings == (("task.max_retries", "5"),)
    assert (config.consensus.tick_ms, config.limits.max_batch_items) == (5, 7)
    assert config.log_level == "debug"


def test_variables_go_over_the_file_and_flags_over_both(tmp_path: Path) -> None:
    path = tmp_path / "gaia.toml"
    path.write_text(FILE)
    environ = {
        "GAIA_DATA_DIR": "from variable",
        "GAIA_LOG_LEVEL": "warning",
        "GAIA_BOOTSTRAP": "no",
        "GAIA_PEERS": "n9=127.0.0.1:7009, n7=127.0.0.1:7007",
        "GAIA_LIMITS_MAX_BATCH_ITEMS": "8",
        "GAIA_CONSENSUS_HEARTBEAT_INTERVAL_MS": "50",
        "GAIA_CLUSTER": "is of the command line",
    }
    config = load({"log_level": "error", "data_dir": None}, environ, path)
    assert config.data_dir == "from variable"
    assert config.log_level == "error"
    assert config.bootstrap is False
    assert config.peer_ids == ("n7", "n9")
    assert (config.limits.max_batch_items, config.limits.max_page_size) == (8, 200)
    assert (config.consensus.tick_ms, config.consensus.heartbeat_interval_ms) == (5, 50)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"node_id": None}, "--node-id (or GAIA_NODE_ID) is missing"),
        ({"peers": []}, "--peer (or GAIA_PEERS) is missing"),
        ({"node_id": "n 1"}, "--node-id must match"),
        ({"node_id": "n3"}, "--node-id n3 is not one of --peer"),
        ({"node_id": "n\n1"}, "--node-id: is not plain text"),
        ({"listen": "nowhere"}, "'nowhere' is not HOST:PORT"),
        ({"listen": "127.0.0.1:70000"}, "'127.0.0.1:70000' is not HOST:PORT"),
        ({"listen": "127.0.0.1:7001"}, "--listen and --peer-listen must differ"),
        ({"bootstrap": True, "join": True}, "--bootstrap and --join exclude each other"),
        ({"bootstrap": "perhaps"}, "--bootstrap: 'perhaps' is neither true nor false"),
        ({"log_level": "loud"}, "--log-level must be one of debug, info, warning, error"),
        ({"log_format": "xml"}, "--log-format must be one of text, json"),
        ({"peers": ["n1"]}, "--peers: 'n1' is not NAME=VALUE"),
        ({"peers": [("n1",)]}, "--peers: ('n1',) is not NAME=VALUE"),
        ({"peers": ["n1=a:1", "n1=b:1"]}, "--peers: n1 is given twice"),
        ({"peers": ["n1=a:1", "n2=a:1"]}, "--peer: two peers have the same address"),
        ({"peers": ["n1=a:0"]}, "--peer n1=a:0: other peers need a port"),
        ({"peers": ["n 1=a:1"]}, "--peer n 1: a node id must match"),
        ({"peers": 3}, "--peers: is not a table of NAME=VALUE"),
        ({"color": "red"}, "--color: there is no such setting"),
    ],
)
def test_what_is_wrong_is_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({**FLAGS, **change})
    assert caught.value.message.startswith(message)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("GAIA_LIMITS_MAX_BATCH_ITMES", "1", "there is no limits.max_batch_itmes"),
        ("GAIA_LIMITS_MAX_BATCH_ITEMS", "many", "limits.max_batch_items must be a whole number"),
        ("GAIA_LIMITS_MAX_BATCH_ITEMS", "0", "limits.max_batch_items must be at least 1"),
        ("GAIA_LIMITS_HEARTBEAT_COLLECT_MS", "101", "limits.heartbeat_collect_ms must be at most"),
        ("GAIA_LIMITS_MAX_PAGE_SIZE", "1", "limits.default_page_size must not exceed"),
        ("GAIA_CONSENSUS_TICK_MS", "0", "consensus.tick_ms must be at least 1"),
        ("GAIA_CONSENSUS_TICK_MS", "1000", "consensus: tick_ms <= heartbeat_interval_ms"),
        ("GAIA_CONSENSUS_ELECTION_TIMEOUT_MAX_MS", "300", "consensus.election_timeout_max_ms"),
    ],
)
def test_variables_that_are_wrong_are_named(variable: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ={variable: value})
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node_id = ", "Invalid value"),
        ("nothing = 1", "nothing: there is no such setting"),
        ("limits = 1", "limits is not a table"),
        ("[limits]\nmax_batch_items = 1.5", "must be a whole number"),
        ("[limits]\nmax_batch_items = true", "must be a whole number"),
        ("node_id = 5", "node_id: is not plain text"),
    ],
)
def test_files_that_are_wrong_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "gaia.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(config_file=path)
    assert caught.value.message.startswith(str(path))
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        load(config_file=tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("localhost:1", ("localhost", 1)),
        ("[::1]:50051", ("::1", 50_051)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
    ],
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts
