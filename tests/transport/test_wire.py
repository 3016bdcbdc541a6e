"""Round trips of every message through its bytes, and what the wire may not bring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gaia.raft.v1 import raft_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.errors import InvalidArgumentError
from gaia_grpc.raft.messages import (
    AppendRequest,
    AppendResponse,
    Envelope,
    PreVoteRequest,
    PreVoteResponse,
    StateChecksum,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from gaia_grpc.raft.types import Entry, EntryKind, Index, NodeId, Term
from gaia_grpc.transport import wire, wire_calls
from gaia_grpc.transport.api import (
    AppliedCommand,
    ForwardedCall,
    ForwardFailure,
    Founding,
    Hello,
    IdentifyRequest,
    IdentifyResponse,
    Member,
    MemberChange,
    ReadIndexGrant,
)

A, B = NodeId("a"), NodeId("b")
numbers = st.integers(0, (1 << 63) - 1)
positive = st.integers(1, (1 << 63) - 1)
texts = st.text(max_size=20)
node_ids = texts.map(NodeId)
hellos = st.builds(
    Hello, texts, node_ids, texts, node_ids, texts, texts, st.integers(0, 2**32 - 1), texts
)
pairs = st.lists(st.tuples(node_ids, texts), max_size=3).map(tuple)
members = st.builds(Member, node_ids, texts, texts, texts, st.booleans())


@st.composite
def entries_after(draw: st.DrawFn, previous: int) -> tuple[Entry, ...]:
    return tuple(
        Entry(
            Term(draw(positive)),
            Index(previous + 1 + offset),
            draw(st.sampled_from(EntryKind)),
            draw(st.binary(max_size=30)),
        )
        for offset in range(draw(st.integers(0, 4)))
    )


@st.composite
def append_requests(draw: st.DrawFn) -> AppendRequest:
    previous = draw(st.integers(0, 1 << 62))
    return AppendRequest(
        Index(previous),
        Term(draw(numbers)),
        draw(entries_after(previous)),
        Index(draw(numbers)),
        draw(numbers),
        draw(st.none() | st.builds(StateChecksum, numbers, st.binary(max_size=40))),
    )


append_responses = st.builds(
    AppendResponse, st.booleans(), numbers, numbers, numbers, numbers, numbers
)


@given(hellos)
def test_hello(hello: Hello) -> None:
    message = pb.Hello.FromString(wire.hello_to_proto(hello).SerializeToString())
    assert wire.hello_from_proto(message) == hello


@given(
    positive,
    hellos,
    st.builds(PreVoteRequest, numbers, numbers)
    | st.builds(VoteRequest, numbers, numbers, st.booleans()),
)
def test_vote_request(term: int, hello: Hello, payload: PreVoteRequest | VoteRequest) -> None:
    data = wire.vote_request_to_proto(Term(term), payload, hello).SerializeToString()
    message = pb.RequestVoteRequest.FromString(data)
    assert wire.vote_request_from_proto(message, A, B) == Envelope(A, B, Term(term), payload)
    assert wire.hello_from_proto(message.hello) == hello


@given(numbers, st.builds(PreVoteResponse, st.booleans()) | st.builds(VoteResponse, st.booleans()))
def test_vote_response(term: int, payload: PreVoteResponse | VoteResponse) -> None:
    data = wire.vote_response_to_proto(Term(term), payload).SerializeToString()
    message = pb.RequestVoteResponse.FromString(data)
    assert wire.vote_response_from_proto(message, A, B) == Envelope(A, B, Term(term), payload)


@given(positive, append_requests())
def test_append_request(term: int, payload: AppendRequest) -> None:
    data = wire.append_request_to_proto(Term(term), payload).SerializeToString()
    message = pb.AppendEntriesRequest.FromString(data)
    assert wire.append_request_from_proto(message, A, B) == Envelope(A, B, Term(term), payload)


@given(numbers, append_responses)
def test_append_response(term: int, payload: AppendResponse) -> None:
    data = wire.append_response_to_proto(Term(term), payload).SerializeToString()
    message = pb.AppendEntriesResponse.FromString(data)
    assert wire.append_response_from_proto(message, A, B) == Envelope(A, B, Term(term), payload)


def test_timeout_now() -> None:
    message = pb.TimeoutNowRequest(term=4)
    expected = Envelope(A, B, Term(4), TimeoutNow())
    assert wire.timeout_now_from_proto(message, A, B) == expected


changes = st.builds(MemberChange, st.booleans(), node_ids, texts, texts)


@given(
    numbers,
    st.builds(ForwardedCall, st.none() | st.binary(max_size=30), numbers)
    | st.builds(ForwardedCall, st.none(), numbers, changes),
)
def test_forwarded_call(call_id: int, call: ForwardedCall) -> None:
    data = wire_calls.call_to_proto(call_id, call).SerializeToString()
    message = pb.ForwardedCall.FromString(data)
    assert message.call_id == call_id
    assert wire_calls.call_from_proto(message) == call


@given(
    numbers,
    st.builds(AppliedCommand, numbers, numbers, st.binary(max_size=30))
    | st.builds(ReadIndexGrant, numbers, numbers)
    | st.builds(ForwardFailure, texts, texts, node_ids, numbers),
)
def test_forwarded_outcome(
    call_id: int, outcome: AppliedCommand | ReadIndexGrant | ForwardFailure
) -> None:
    data = wire_calls.outcome_to_proto(call_id, outcome).SerializeToString()
    message = pb.ForwardedOutcome.FromString(data)
    assert message.call_id == call_id
    assert wire_calls.outcome_from_proto(message) == outcome


@given(st.builds(IdentifyRequest, node_ids, texts, pairs, pairs))
def test_identify_request(request: IdentifyRequest) -> None:
    data = wire_calls.identify_request_to_proto(request).SerializeToString()
    message = pb.IdentifyRequest.FromString(data)
    assert wire_calls.identify_request_from_proto(message) == request


@given(
    st.builds(
        IdentifyResponse,
        node_ids,
        texts,
        texts,
        st.booleans(),
        st.booleans(),
        pairs,
        pairs,
        st.none()
        | st.builds(Founding, texts, st.lists(members, max_size=3).map(tuple), entries_after(0)),
        st.integers(0, 2**32 - 1),
        texts,
    )
)
def test_identify_response(response: IdentifyResponse) -> None:
    data = wire_calls.identify_response_to_proto(response).SerializeToString()
    message = pb.IdentifyResponse.FromString(data)
    assert wire_calls.identify_response_from_proto(message) == response


def entry(index: int, *, term: int = 1, kind: int = 2) -> pb.Entry:
    message = pb.Entry(term=term, index=index)
    message.ParseFromString(message.SerializeToString() + bytes([0x18, kind]))
    return message


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (wire.append_request_from_proto, pb.AppendEntriesRequest(term=0)),
        (wire.append_request_from_proto, pb.AppendEntriesRequest(term=1, previous_log_index=-1)),
        (wire.append_request_from_proto, pb.AppendEntriesRequest(term=1, previous_log_term=-1)),
        (wire.append_request_from_proto, pb.AppendEntriesRequest(term=1, leader_commit=-1)),
        (wire.append_request_from_proto, pb.AppendEntriesRequest(term=1, round=-1)),
        (wire.append_request_from_proto, pb.AppendEntriesRequest(term=1, entries=[entry(2)])),
        (
            wire.append_request_from_proto,
            pb.AppendEntriesRequest(term=1, entries=[entry(1), entry(3)]),
        ),
        (
            wire.append_request_from_proto,
            pb.AppendEntriesRequest(term=1, entries=[entry(1, term=0)]),
        ),
        (
            wire.append_request_from_proto,
            pb.AppendEntriesRequest(term=1, entries=[entry(1, kind=0)]),
        ),
        (
            wire.append_request_from_proto,
            pb.AppendEntriesRequest(term=1, entries=[entry(1, kind=9)]),
        ),
        (wire.append_response_from_proto, pb.AppendEntriesResponse(term=-1)),
        (wire.append_response_from_proto, pb.AppendEntriesResponse(match_index=-1)),
        (wire.append_response_from_proto, pb.AppendEntriesResponse(round=-1)),
        (wire.vote_request_from_proto, pb.RequestVoteRequest(term=0)),
        (wire.vote_request_from_proto, pb.RequestVoteRequest(term=1, last_log_index=-1)),
        (wire.vote_response_from_proto, pb.RequestVoteResponse(term=-1)),
        (wire.timeout_now_from_proto, pb.TimeoutNowRequest()),
    ],
)
def test_what_no_correct_peer_sends_is_refused(
    read: Callable[[Any, NodeId, NodeId], Envelope], message: object
) -> None:
    with pytest.raises(InvalidArgumentError, match="a peer sent"):
        read(message, A, B)


def test_calls_and_outcomes_without_a_body_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="without a body"):
        wire_calls.call_from_proto(pb.ForwardedCall(call_id=1))
    with pytest.raises(InvalidArgumentError, match="without a body"):
        wire_calls.outcome_from_proto(pb.ForwardedOutcome(call_id=1))
