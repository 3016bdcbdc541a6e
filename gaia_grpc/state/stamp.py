"""The leader's stamp on a command: its log time and wall time, without decoding the command."""

from __future__ import annotations

from gaia.command.v1 import command_pb2
from google.protobuf.message import DecodeError

from gaia_grpc.errors import InvalidArgumentError
from gaia_grpc.state.feature_levels import required_level


def stamp(command: bytes, elapsed_ms: int, wall_ms: int) -> bytes:
    """Appends both times to a serialized Command: concatenated protobuf messages merge."""
    times = command_pb2.Command(elapsed_ms=elapsed_ms, wall_ms=wall_ms)
    return command + times.SerializeToString()


def check_command(command: bytes) -> None:
    """Raises `InvalidArgumentError` for what this version can't apply.

    What another process sends must be looked at before it is in the log: there it would stop every
    peer, at each start again.
    """
    _body_name(command)


def required_feature_level(command: bytes) -> int:
    """The feature level that the cluster must have before `command` may be proposed.

    Raises `InvalidArgumentError` for what this version can't apply.
    """
    return required_level(_body_name(command))


def _body_name(command: bytes) -> str:
    try:
        body = command_pb2.Command.FromString(command).WhichOneof("body")
    except DecodeError as error:
        raise InvalidArgumentError("the command can't be decoded") from error
    if body is None:
        raise InvalidArgumentError("the command has no body that this version knows")
    return str(body)
