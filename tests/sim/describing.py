"""Messages in one line, for traces."""

from __future__ import annotations

from gaia_grpc.raft.messages import AppendRequest, AppendResponse, Envelope, SnapshotRequest


def short(envelope: Envelope) -> str:
    """The parts that matter; the entries by their number."""
    payload = envelope.payload
    head = f"{envelope.from_node}>{envelope.to_node} t{envelope.term} "
    if isinstance(payload, AppendRequest):
        return (
            f"{head}append {payload.previous_term}/{payload.previous_index}"
            f"+{len(payload.entries)} c{payload.commit_index} r{payload.round}"
        )
    if isinstance(payload, AppendResponse):
        return f"{head}{'ok' if payload.success else 'no'} {payload.match_index} r{payload.round}"
    if isinstance(payload, SnapshotRequest):
        return f"{head}snapshot {payload.meta.term}/{payload.meta.index}"
    return f"{head}{payload}"
