"""Nothing of the contracts is forgotten: commands, queries and errors all have their place.

What a later version will serve is listed here by name, so that it cannot be forgotten either: the
tests fail when a listed name is served, and when an unlisted one is not.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

import grpc
import pytest
from gaia.command.v1 import command_pb2, query_pb2

from gaia_grpc import errors
from gaia_grpc.config import PeerConfig
from gaia_grpc.node.api import ReplicatedLog
from gaia_grpc.raft.types import EntryKind
from gaia_grpc.services.error_table import ERROR_TABLE, find_row
from gaia_grpc.services.registry import NOT_SERVED, PublicServices
from gaia_grpc.state.feature_levels import FEATURE_LEVEL
from gaia_grpc.state.machine import StateMachine
from tests.contract.test_protos import services

COMMANDS = [field.name for field in command_pb2.Command.DESCRIPTOR.oneofs_by_name["body"].fields]
QUERIES = [field.name for field in query_pb2.Query.DESCRIPTOR.oneofs_by_name["body"].fields]

LATER_COMMANDS: set[str] = set()
LATER_QUERIES: set[str] = set()

INTERNAL_ON_PURPOSE = {
    errors.GaiaError, errors.DomainError, errors.InvariantError, errors.ConfigError,
    errors.StartupError, errors.StorageError, errors.StorageDamagedError,
    errors.StorageFailedError, errors.SnapshotRefusedError,
}  # fmt: skip
"""Roots, what stops a peer or keeps it from starting, and what peers say to each other only: no
caller can do anything about them."""


def founded() -> StateMachine:
    machine = StateMachine()
    founding = command_pb2.FoundCluster(cluster_id="c1", feature_level=FEATURE_LEVEL)
    command = command_pb2.Command(elapsed_ms=1_000, wall_ms=1_000, found_cluster=founding)
    machine.apply(1, EntryKind.COMMAND, command.SerializeToString())
    return machine


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_an_arm_that_survives_an_empty_body(name: str) -> None:
    command = command_pb2.Command(elapsed_ms=2_000, wall_ms=2_000)
    getattr(command, name).SetInParent()
    encoded = founded().apply(2, EntryKind.COMMAND, command.SerializeToString())
    result = command_pb2.CommandResult.FromString(encoded)
    assert result.WhichOneof("body") is not None
    served = result.refusal.kind != command_pb2.REFUSAL_KIND_UNIMPLEMENTED
    assert served == (name not in LATER_COMMANDS)


@pytest.mark.parametrize("name", QUERIES)
def test_each_query_has_an_arm_that_survives_an_empty_body(name: str) -> None:
    query = query_pb2.Query()
    getattr(query, name).SetInParent()
    result = query_pb2.QueryResult.FromString(founded().query(query.SerializeToString(), 2_000))
    assert result.WhichOneof("body") is not None
    served = result.refusal.kind != command_pb2.REFUSAL_KIND_UNIMPLEMENTED
    assert served == (name not in LATER_QUERIES)


def error_classes() -> list[type[errors.GaiaError]]:
    members = [member for _, member in inspect.getmembers(errors, inspect.isclass)]
    return [member for member in members if issubclass(member, errors.GaiaError)]


@pytest.mark.parametrize("error", error_classes(), ids=lambda error: error.__name__)
def test_each_error_has_a_row_or_is_internal_on_purpose(error: type[errors.GaiaError]) -> None:
    row = find_row(error.__new__(error))
    assert (row is None) == (error in INTERNAL_ON_PURPOSE)


def test_reasons_are_unique() -> None:
    reasons = [error.reason for error in error_classes() if error is not errors.GaiaError]
    assert sorted(set(reasons)) == sorted(reasons)
    assert set(ERROR_TABLE) <= set(error_classes())


class Registered:
    """Takes the place of a server: remembers which method of which servicer serves what."""

    def __init__(self) -> None:
        self.methods: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same handlers once more, for servers that know no names."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        for name, handler in handlers.items():
            kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
            method = next(filter(None, (getattr(handler, kind) for kind in kinds)))
            self.methods[f"/{service}/{name}"] = method


def public_methods() -> set[str]:
    found = {f"/{s}/{method}" for s, methods in services().items() for method in methods}
    return {name for name in found if not name.startswith("/gaia.raft.")}


def registered() -> Registered:
    config = PeerConfig(
        node_id="n1",
        listen="127.0.0.1:1",
        peer_listen="127.0.0.1:2",
        peers=(("n1", "127.0.0.1:2"),),
        data_dir="unused",
        bootstrap=True,
    )
    server = Registered()
    log = cast(ReplicatedLog, object())
    PublicServices(log, config).add_to(cast(grpc.aio.Server, server))
    return server


def test_each_public_rpc_is_registered() -> None:
    assert set(registered().methods) == public_methods()


def test_each_rpc_is_served_or_listed_as_not_served() -> None:
    generated = {
        name
        for name, method in registered().methods.items()
        if method.__func__.__module__.endswith("_pb2_grpc")
    }
    assert generated == set(NOT_SERVED)
