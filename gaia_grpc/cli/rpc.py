"""Single synchronous calls, for commands that need no SDK: who leads, and `gaia call`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import grpc
from gaia.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gaia_grpc.cli.options import parse_cluster
from gaia_grpc.errors import GaiaError, UnavailableError

MAX_MESSAGE_SIZE_BYTES = 64 << 20
REACH_TIMEOUT_S = 2.0


@contextmanager
def open_channel(address: str) -> Iterator[grpc.Channel]:
    """A channel to one peer that takes messages of any size a peer sends."""
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_SIZE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_SIZE_BYTES),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    channel = grpc.insecure_channel(address, options=options)
    try:
        yield channel
    finally:
        channel.close()


Answer = cluster_pb2.GetStatusResponse | grpc.StatusCode
"""What a peer says of itself, or why it does not."""


def _ask_statuses(addresses: Sequence[str], timeout_s: float) -> Iterator[tuple[str, Answer]]:
    """Asks all peers at once; yields answers as they come, and none for who is silent."""
    answers: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    with ExitStack() as stack:
        for address in addresses:
            channel = stack.enter_context(open_channel(address))
            call = cluster_pb2_grpc.ClusterServiceStub(channel).GetStatus.future(
                cluster_pb2.GetStatusRequest(), timeout=timeout_s
            )
            call.add_done_callback(partial(_note, answers, address))
        # A moment more than the calls have: their own end is to be seen.
        deadline_s = time.monotonic() + timeout_s + 0.5
        for _ in addresses:
            try:
                address, done = answers.get(timeout=max(deadline_s - time.monotonic(), 0.01))
            except Empty:
                return
            try:
                answer: cluster_pb2.GetStatusResponse = done.result()
                yield address, answer
            except grpc.RpcError:
                yield address, done.code()


def _note(answers: SimpleQueue[tuple[str, Any]], address: str, done: object) -> None:
    answers.put((address, done))


def peer_statuses(
    addresses: Sequence[str], timeout_s: float
) -> dict[str, cluster_pb2.GetStatusResponse | None]:
    """What each peer says of itself; None where it does not answer in time."""
    found = dict(_ask_statuses(addresses, timeout_s))
    return {
        address: None if answer is None or isinstance(answer, grpc.StatusCode) else answer
        for address, answer in ((address, found.get(address)) for address in addresses)
    }


def require_peer(addresses: Sequence[str], timeout_s: float = REACH_TIMEOUT_S) -> str:
    """The first address that answers, in the order given, so that the same call goes to the same
    peer; `UnavailableError` where none does, with what to do."""
    silent = list(addresses)
    answering: list[str] = []
    found: dict[str, grpc.StatusCode] = {}
    for address, answer in _ask_statuses(addresses, timeout_s):
        silent.remove(address)
        if isinstance(answer, grpc.StatusCode):
            found[address] = answer
        else:
            answering.append(address)
        first = min(answering + silent, key=addresses.index, default="")
        if first in answering:
            return first
    if answering:
        return min(answering, key=addresses.index)
    raise UnavailableError(_nobody_answers(addresses, found))


def require_cluster(cluster: str, *, quiet: bool) -> None:
    """Says which cluster is used; `UnavailableError` where nobody answers there."""
    addresses = parse_cluster(cluster)
    require_peer(addresses)
    if not quiet:
        origin = " (GAIA_CLUSTER)" if cluster == os.environ.get("GAIA_CLUSTER") else ""
        print(f"using the cluster at {','.join(addresses)}{origin}", flush=True)


def _nobody_answers(addresses: Sequence[str], codes: Mapping[str, grpc.StatusCode]) -> str:
    wrong = [each for each in addresses if codes.get(each) is grpc.StatusCode.UNIMPLEMENTED]
    if wrong:
        return (
            f"no client port of a peer: {', '.join(wrong)} (peers talk to each other there; "
            "`gaia up` has client ports 50051, 50052, ... and peer ports 100 higher)"
        )
    return f"no peer answers at {','.join(addresses)}; `gaia up` starts a local cluster"


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
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        text += "; `gaia status` shows the peers"
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
