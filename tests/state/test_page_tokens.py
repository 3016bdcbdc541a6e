"""Page tokens belong to one list and to no peer."""

from __future__ import annotations

import base64

import pytest
from gaia.common.v1 import common_pb2
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.state import page_tokens
from gaia_grpc.state.refusal import Refused

LIST = task_pb2.ListTasksRequest(task_type="grade")


@given(st.text(min_size=1, max_size=200))
def test_a_token_brings_its_key_back(key: str) -> None:
    key = key.encode("utf-8", "ignore").decode() or "k"
    token = page_tokens.encode(LIST, key)
    assert page_tokens.decode(LIST, token) == key
    assert token.isascii()
    assert not set(token) & set("=+/ ")


def test_size_place_and_consistency_may_change_between_pages() -> None:
    token = page_tokens.encode(LIST, "t-1")
    other = task_pb2.ListTasksRequest(
        task_type="grade", page_size=7, page_token="x", consistency=common_pb2.CONSISTENCY_LOCAL
    )
    assert page_tokens.decode(other, token) == "t-1"
    assert page_tokens.decode(LIST, "") == ""


@pytest.mark.parametrize(
    "token",
    [
        "not base64 at all!",
        "AAAA",
        "a",
        base64.urlsafe_b64encode(b"2" + b"\0" * 20).decode(),
        page_tokens.encode(LIST, ""),
        page_tokens.encode(LIST, "t-1") + "Aé",
        page_tokens.encode(task_pb2.ListTasksRequest(task_type="other"), "t-1"),
        page_tokens.encode(session_pb2.ListSessionsRequest(provider="grade"), "t-1"),
    ],
)
def test_a_token_of_another_list_or_damaged_is_refused(token: str) -> None:
    with pytest.raises(Refused) as refusal:
        page_tokens.decode(LIST, token)
    assert refusal.value.refusal.field == "page_token"


def test_page_sizes() -> None:
    assert page_tokens.page_size(0) == 100
    assert page_tokens.page_size(1_000) == 1_000
    for bad in (-1, 1_001):
        with pytest.raises(Refused):
            page_tokens.page_size(bad)
