"""The leader's stamp on a command: its log time and wall time, without decoding the command."""

from __future__ import annotations

from gaia.command.v1 import command_pb2


def stamp(command: bytes, elapsed_ms: int, wall_ms: int) -> bytes:
    """Appends both times to a serialized Command: concatenated protobuf messages merge."""
    times = command_pb2.Command(elapsed_ms=elapsed_ms, wall_ms=wall_ms)
    return command + times.SerializeToString()


def required_feature_level(command: bytes) -> int:
    """The feature level that every member must have before `command` may be proposed."""
    del command
    return 1
