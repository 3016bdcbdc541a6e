"""The I/O configuration of one peer: one frozen, validated value with every limit by name.

Nothing here may change what the state machine does: timers and limits that `apply` depends on are
replicated settings (`gaia_grpc.state.settings`). Two peers may run with different values of this
file and still produce the same bytes.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from gaia_grpc.errors import ConfigError

MAX_HEARTBEAT_COLLECT_MS = 100
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")


@dataclass(frozen=True, slots=True)
class ConsensusConfig:
    """Timing and batching of consensus. The defaults are the guide's figures."""

    tick_ms: int = 10
    """Length of a tick; all other times are rounded up to ticks."""
    heartbeat_interval_ms: int = 150
    election_timeout_min_ms: int = 300
    election_timeout_max_ms: int = 500
    max_entries_per_append: int = 512
    max_append_size_bytes: int = 1 << 20
    max_inflight_appends: int = 64
    max_inflight_partial_appends: int = 2
    """Appends under way to one follower from which on entries gather for a fuller one."""
    max_pending_proposals: int = 20_000
    """Proposals waiting at one peer; beyond it OVERLOADED with a retry time."""
    max_pending_size_bytes: int = 256 << 20
    max_pending_reads: int = 20_000
    default_timeout_ms: int = 5_000
    """Deadline of a call that brings none."""
    max_timeout_ms: int = 60_000
    peer_lost_rank_delay_ms: int = 25
    """A follower of rank r waits r times this before it campaigns for its dead leader's seat."""
    max_feature_level: int = 0
    """Highest feature level that this peer announces; 0 is all that its version understands."""

    def __post_init__(self) -> None:
        if self.tick_ms < 1:
            raise ConfigError("consensus.tick_ms must be at least 1")
        if not self.tick_ms <= self.heartbeat_interval_ms < self.election_timeout_min_ms:
            raise ConfigError(
                "consensus: tick_ms <= heartbeat_interval_ms < election_timeout_min_ms must hold"
            )
        if self.election_timeout_min_ms >= self.election_timeout_max_ms:
            raise ConfigError("consensus.election_timeout_max_ms must exceed the minimum")
        if self.max_feature_level < 0:
            raise ConfigError("consensus.max_feature_level must not be negative")


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """When snapshots are made, how much log stays behind them, and when a disk counts as stalled.

    A snapshot is made as soon as either of the first two limits is reached.
    """

    snapshot_every_entries: int = 50_000
    snapshot_every_size_bytes: int = 64 << 20
    snapshot_keep_entries: int = 10_000
    """Entries before the snapshot that stay: who lags by fewer needs no snapshot."""
    snapshot_keep_size_bytes: int = 64 << 20
    """At most so much of them stays in memory."""
    snapshot_hold_size_bytes: int = 256 << 20
    """A leader keeps up to this much instead for a follower that is being brought up to date: else
    one that takes longer than the next snapshot would get one snapshot after the other."""
    disk_stall_ms: int = 2_000
    """A leader with a write that takes longer gives its office up."""

    def __post_init__(self) -> None:
        for limit in fields(self):
            least = 0 if limit.name.startswith(("snapshot_keep", "snapshot_hold")) else 1
            if getattr(self, limit.name) < least:
                raise ConfigError(f"storage.{limit.name} must be at least {least}")


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """Bounds of what a client may ask of one peer."""

    max_message_size_bytes: int = 16 << 20
    max_payload_size_bytes: int = 1 << 20
    max_batch_items: int = 1_000
    max_metrics_per_batch: int = 10_000
    max_metrics_in_flight: int = 100_000
    """Metrics that one peer holds from their arrival to their acknowledgement; beyond it calls are
    refused with a retry time, and streams are not read. A source gets a quarter, streams a half."""
    max_metric_size_bytes_in_flight: int = 32 << 20
    """The same in bytes of their requests."""
    max_metrics_in_log: int = 10_000
    """Of these, how many one peer has on their way through the log: a task that comes waits behind
    so many of each peer at most. A larger batch passes alone."""
    max_page_size: int = 1_000
    default_page_size: int = 100
    max_concurrent_streams: int = 5_000
    """Streams that one peer serves at once (subscriptions and watches)."""
    max_concurrent_calls: int = 4_000
    """Unary calls in flight; beyond it OVERLOADED with a retry time."""
    subscriber_write_timeout_ms: int = 5_000
    heartbeat_collect_ms: int = 20
    """How long heartbeats are collected before they are logged together; at most 100."""
    drain_timeout_ms: int = 5_000
    """How long SIGTERM waits for calls in flight."""
    peer_max_message_size_bytes: int = 64 << 20
    peer_queue_frames: int = 4_096

    def __post_init__(self) -> None:
        for limit in fields(self):
            least = 0 if limit.name in ("heartbeat_collect_ms", "drain_timeout_ms") else 1
            if getattr(self, limit.name) < least:
                raise ConfigError(f"limits.{limit.name} must be at least {least}")
        if self.heartbeat_collect_ms > MAX_HEARTBEAT_COLLECT_MS:
            raise ConfigError(
                f"limits.heartbeat_collect_ms must be at most {MAX_HEARTBEAT_COLLECT_MS}"
            )
        if self.default_page_size > self.max_page_size:
            raise ConfigError("limits.default_page_size must not exceed limits.max_page_size")


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """Everything `gaia serve` needs."""

    node_id: str
    listen: str
    """Client address, host:port."""
    peer_listen: str
    """Peer address, host:port."""
    peers: tuple[tuple[str, str], ...]
    """(node id, peer address) of every peer, sorted by node id, this one included."""
    data_dir: str
    bootstrap: bool = False
    join: bool = False
    settings: tuple[tuple[str, str], ...] = ()
    """First values of replicated settings, sorted by name; used at founding only."""
    log_level: str = "info"
    log_format: str = "text"
    """`text` or `json`."""
    consensus: ConsensusConfig = field(default_factory=ConsensusConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)

    @property
    def peer_ids(self) -> tuple[str, ...]:
        """Node ids of all peers, sorted."""
        return tuple(node_id for node_id, _ in self.peers)


# --- loading --------------------------------------------------------------------------------------

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:\[\]/,]+):(?P<port>\d{1,5})")
_REQUIRED = ("node_id", "listen", "peer_listen", "peers", "data_dir")
_TEXTS = ("node_id", "listen", "peer_listen", "data_dir", "log_level", "log_format")
_SWITCHES = ("bootstrap", "join")
_PAIRS = ("peers", "settings")
_SECTIONS: Mapping[str, type[ConsensusConfig] | type[LimitsConfig] | type[StorageConfig]] = {
    "consensus": ConsensusConfig,
    "limits": LimitsConfig,
    "storage": StorageConfig,
}
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off", "")


def load_peer_config(
    flags: Mapping[str, object],
    *,
    config_file: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> PeerConfig:
    """Flags over GAIA_* variables over a TOML file over defaults.

    `flags` has the names of `PeerConfig`; None means not given; `peers` and `settings` are pairs.
    Variables are GAIA_ and the name in capitals (`GAIA_PEERS=n1=HOST:PORT,n2=...`,
    `GAIA_LIMITS_MAX_BATCH_ITEMS=500`); GAIA_CONFIG names the file. In the file `peers`, `settings`,
    `consensus`, `limits` and `storage` are tables. Raises `ConfigError`, each a line that names its
    source.
    """
    variables = os.environ if environ is None else environ
    path = config_file or variables.get("GAIA_CONFIG", "")
    values: dict[str, object] = {}
    sections: dict[str, dict[str, int]] = {name: {} for name in _SECTIONS}
    if path:
        _take_file(Path(path), values, sections)
    _take_variables(variables, values, sections)
    for name, value in flags.items():
        if value is not None:
            values[name] = _parse(name, value, f"--{name.replace('_', '-')}")
    _list_itself(values)
    missing = [name for name in _REQUIRED if not values.get(name)]
    if missing:
        flag = {"peers": "peer"}.get(missing[0], missing[0]).replace("_", "-")
        raise ConfigError(f"--{flag} (or GAIA_{missing[0].upper()}) is missing")
    config = PeerConfig(
        **values,  # type: ignore[arg-type]  # each was parsed to the type of its field
        consensus=ConsensusConfig(**sections["consensus"]),
        limits=LimitsConfig(**sections["limits"]),
        storage=StorageConfig(**sections["storage"]),
    )
    _check(config)
    return config


def _list_itself(values: dict[str, object]) -> None:
    """Who waits to be added needs to know nobody: its own address is list enough."""
    peers = values.get("peers") or ()
    node_id, address = values.get("node_id"), values.get("peer_listen")
    if values.get("join") and node_id and address and isinstance(peers, tuple):
        values["peers"] = tuple(sorted({str(node_id): str(address), **dict(peers)}.items()))


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT ([HOST]:PORT for IPv6). Raises `ConfigError`."""
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65_535:
        raise ConfigError(f"{address!r} is not HOST:PORT")
    return match["host"].strip("[]"), int(match["port"])


def _take_file(path: Path, values: dict[str, object], sections: dict[str, dict[str, int]]) -> None:
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    for name, value in table.items():
        if name in _SECTIONS:
            if not isinstance(value, dict):
                raise ConfigError(f"{path}: {name} is not a table")
            for key, number in value.items():
                sections[name][key] = _number(name, key, number, str(path))
        else:
            values[name] = _parse(name, value, f"{path}: {name}")


def _take_variables(
    variables: Mapping[str, str], values: dict[str, object], sections: dict[str, dict[str, int]]
) -> None:
    for name in (*_TEXTS, *_SWITCHES, *_PAIRS):
        variable = f"GAIA_{name.upper()}"
        if variable in variables:
            values[name] = _parse(name, variables[variable], variable)
    for section in _SECTIONS:
        prefix = f"GAIA_{section.upper()}_"
        for variable in sorted(variables):
            if variable.startswith(prefix):
                key = variable.removeprefix(prefix).lower()
                sections[section][key] = _number(section, key, variables[variable], variable)


def _parse(name: str, value: object, source: str) -> object:
    """The value of one field of `PeerConfig` from a flag, a variable or the file."""
    if name in _TEXTS:
        if not isinstance(value, str) or not value.isprintable():
            raise ConfigError(f"{source}: is not plain text")
        return value
    if name in _SWITCHES:
        word = str(value).lower()
        if word not in (*_TRUE, *_FALSE):
            raise ConfigError(f"{source}: {value!r} is neither true nor false")
        return word in _TRUE
    if name in _PAIRS:
        return _pairs(value, source)
    raise ConfigError(f"{source}: there is no such setting")


def _pairs(value: object, source: str) -> tuple[tuple[str, str], ...]:
    """Sorted (name, value) pairs of a table, of pairs, or of NAME=VALUE texts."""
    items: Iterable[object]
    if isinstance(value, str):
        items = [item for item in value.split(",") if item.strip()]
    elif isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, Sequence):
        items = value
    else:
        raise ConfigError(f"{source}: is not a table of NAME=VALUE")
    pairs: dict[str, str] = {}
    for item in items:
        if isinstance(item, str):
            key, equals, text = item.partition("=")
            pair = (key.strip(), text.strip()) if equals else ("", "")
        elif isinstance(item, Sequence) and len(item) == 2:
            pair = (str(item[0]), str(item[1]))
        else:
            pair = ("", "")
        if not all(pair) or not "".join(pair).isprintable():
            raise ConfigError(f"{source}: {item!r} is not NAME=VALUE")
        if pair[0] in pairs:
            raise ConfigError(f"{source}: {pair[0]} is given twice")
        pairs[pair[0]] = pair[1]
    return tuple(sorted(pairs.items()))


def _number(section: str, key: str, value: object, source: str) -> int:
    if key not in {known.name for known in fields(_SECTIONS[section])}:
        raise ConfigError(f"{source}: there is no {section}.{key}")
    try:
        if isinstance(value, (bool, float)):
            raise ValueError
        return int(str(value).replace("_", ""))
    except ValueError:
        raise ConfigError(f"{source}: {section}.{key} must be a whole number") from None


def _check(config: PeerConfig) -> None:
    """What can be told without touching the disk or the network."""
    if _ID.fullmatch(config.node_id) is None:
        raise ConfigError("--node-id must match [A-Za-z0-9._:-]{1,128}")
    split_address(config.listen)
    split_address(config.peer_listen)
    for node_id, address in config.peers:
        if _ID.fullmatch(node_id) is None:
            raise ConfigError(f"--peer {node_id}: a node id must match [A-Za-z0-9._:-]{{1,128}}")
        if split_address(address)[1] == 0:
            raise ConfigError(f"--peer {node_id}={address}: other peers need a port")
    if config.node_id not in config.peer_ids:
        raise ConfigError(f"--node-id {config.node_id} is not one of --peer")
    if len({address for _, address in config.peers}) < len(config.peers):
        raise ConfigError("--peer: two peers have the same address")
    if config.listen == config.peer_listen:
        raise ConfigError("--listen and --peer-listen must differ")
    if config.bootstrap and config.join:
        raise ConfigError("--bootstrap and --join exclude each other")
    if config.log_level not in LOG_LEVELS:
        raise ConfigError(f"--log-level must be one of {', '.join(LOG_LEVELS)}")
    if config.log_format not in LOG_FORMATS:
        raise ConfigError(f"--log-format must be one of {', '.join(LOG_FORMATS)}")
