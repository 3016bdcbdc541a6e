"""Single synchronous calls, for commands that need no SDK: who leads, and `gaia call`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grpc
from gaia.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gaia_grpc.errors import GaiaError, UnavailableError

MAX_MESSAGE_SIZE_BYTES = 64 << 20


@contextmanager
def open_channel(address: str) -> Iterator[grpc.Channel]:
    """A channel to one peer that takes messages of any size a peer sends."""
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_SIZE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_SIZE_BYTES),
    ]
    channel = grpc.insecure_channel(address, options=options)
    try:
        yield channel
    finally:
        channel.close()


def peer_statuses(
    addresses: Sequence[str], timeout_s: float
) -> dict[str, cluster_pb2.GetStatusResponse | None]:
    """What each peer says of itself; None where it does not answer in time."""
    answers: dict[str, cluster_pb2.GetStatusResponse | None] = {}
    for address in addresses:
        with open_channel(address) as channel:
            stub = cluster_pb2_grpc.ClusterServiceStub(channel)
            try:
                answers[address] = stub.GetStatus(cluster_pb2.GetStatusRequest(), timeout=timeout_s)
            except grpc.RpcError:
                answers[address] = None
    return answers


def leader_of(addresses: Sequence[str], timeout_s: float) -> str:
    """Node id of the leader, where it can take writes; empty while there is none."""
    for answer in peer_statuses(addresses, timeout_s).values():
        if answer and answer.writable and answer.role == cluster_pb2.PEER_ROLE_LEADER:
            return answer.node_id
    return ""


def to_command_error(error: grpc.RpcError) -> GaiaError:
    """One line of a failed call: the code, what the peer says, its reason and field violations."""
    if not isinstance(error, grpc.Call):
        return UnavailableError(str(error))
    code = error.code()
    text = error.details() or ""
    extras: list[str] = []
    status = rpc_status.from_call(error) if error.trailing_metadata() else None
    for detail in status.details if status else ():
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            extras.append(f"reason {info.reason}")
            extras += [f"{key} {info.metadata[key]}" for key in sorted(info.metadata)]
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            extras += [f"{item.field}: {item.description}" for item in bad.field_violations]
    suffix = f" ({'; '.join(extras)})" if extras else ""
    return GaiaError(f"{code.name}: {text}{suffix}")
