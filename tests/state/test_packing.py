"""How ingress packs a batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
from gaia.metrics.v1 import metrics_pb2
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.errors import InvalidArgumentError
from gaia_grpc.state import packing
from gaia_grpc.state.packing import (
    DIGEST_BYTES,
    MAX_TIME_MS,
    Packing,
    decode_column,
    encode_column,
    pack_batch,
)
from tests.state.lessons import MAX_FUTURE_MS, Sample, make_batch

NOW = 1_700_000_000_000


def pack(*samples: Sample, sent_at_ms: int = NOW, **fields: Any) -> Packing:
    batch = make_batch(samples, sequence=fields.pop("sequence", 1), sent_at_ms=sent_at_ms, **fields)
    return pack_batch(batch, max_future_ms=MAX_FUTURE_MS)


def columns(packed: Packing) -> dict[str, tuple[list[int], list[int]]]:
    return {
        column.metric_type: (
            list(decode_column(column.time_offsets_ms)),
            list(decode_column(column.values_micro)),
        )
        for column in packed.batch.columns
    }


def reasons(packed: Packing) -> list[tuple[int, str]]:
    return [(metric.index, metric.reason) for metric in packed.rejected]


def test_metrics_are_grouped_by_type_and_the_types_sorted() -> None:
    packed = pack(("b", 1.5, NOW), ("a", 2, NOW - 5), ("b", -0.25, NOW - 7))
    assert [column.metric_type for column in packed.batch.columns] == ["a", "b"]
    assert columns(packed) == {
        "a": ([-5], [2_000_000]),
        "b": ([0, -7], [1_500_000, -250_000]),
    }
    assert packed.rejected == ()


def test_everything_but_the_metrics_is_taken_over() -> None:
    batch = pack(("a", 1, NOW), sequence=9, timeline_id="t", classroom_id="c").batch
    assert (batch.source_id, batch.source_epoch, batch.sequence) == ("ana-reading", 1, 9)
    assert (batch.timeline_id, batch.classroom_id) == ("t", "c")
    assert (batch.student_id, batch.app_name, batch.sent_at_ms) == ("ana", "reading", NOW)
    assert len(batch.content_digest) == DIGEST_BYTES


def test_invalid_metrics_are_listed_by_index_and_the_valid_ones_kept() -> None:
    packed = pack(
        ("ok", 1, NOW),
        ("ok", math.nan, NOW),
        ("ok", math.inf, NOW),
        ("ok", -math.inf, NOW),
        ("ok", 9.1e9, NOW),
        ("not ok", 1, NOW),
        ("", 1, NOW),
        ("x" * 129, 1, NOW),
        ("ok", 1, NOW + MAX_FUTURE_MS + 1),
        ("ok", -9e9, NOW + MAX_FUTURE_MS),
    )
    assert reasons(packed) == [
        (1, "VALUE_NOT_FINITE"),
        (2, "VALUE_NOT_FINITE"),
        (3, "VALUE_NOT_FINITE"),
        (4, "VALUE_OUT_OF_RANGE"),
        (5, "TYPE_INVALID"),
        (6, "TYPE_INVALID"),
        (7, "TYPE_INVALID"),
        (8, "TIME_IN_FUTURE"),
    ]
    assert columns(packed) == {"ok": ([0, MAX_FUTURE_MS], [1_000_000, -9 * 10**15])}


def test_a_batch_of_invalid_metrics_has_no_columns() -> None:
    packed = pack(("ok", math.nan, NOW), ("?", 1, NOW))
    assert not packed.batch.columns
    assert len(packed.rejected) == 2


def test_no_event_time_means_sent_at() -> None:
    assert columns(pack(("a", 1, 0))) == {"a": ([0], [1_000_000])}


def test_without_sent_at_a_live_metric_is_now_whatever_it_says() -> None:
    packed = pack(("a", 1, NOW), ("a", 2, 5), sent_at_ms=0)
    assert columns(packed)["a"][0] == [0, 0]
    assert packed.batch.sent_at_ms == 0


def test_without_sent_at_a_timeline_is_as_late_as_its_newest_event() -> None:
    packed = pack(("a", 1, 5_000), ("a", 2, 2_000), ("a", 3, 0), sent_at_ms=0, timeline_id="t")
    assert packed.batch.sent_at_ms == 5_000
    assert columns(packed)["a"][0] == [0, -3_000, 0]
    assert pack(("a", 1, 0), sent_at_ms=0, timeline_id="t").batch.sent_at_ms == 0


@pytest.mark.parametrize("sent_at_ms", [-1, MAX_TIME_MS + 1, 2**63 - 1, -(2**63)])
def test_a_sent_at_that_is_no_time_is_refused(sent_at_ms: int) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        pack(("a", 1, NOW), sent_at_ms=sent_at_ms)
    assert [violation.field for violation in caught.value.violations] == ["sent_at_ms"]


def test_the_oldest_and_the_latest_time_fit_the_column() -> None:
    packed = pack(("a", 1, -(2**63)), ("a", 1, 2**63 - 1), sent_at_ms=MAX_TIME_MS)
    assert columns(packed)["a"][0] == [-MAX_TIME_MS]
    assert reasons(packed) == [(1, "TIME_IN_FUTURE")]


# --- the digest --------------------------------------------------------------------------------


def digest(*samples: Sample, **fields: Any) -> bytes:
    return pack(*samples, **fields).batch.content_digest


def test_another_attempt_has_the_same_digest() -> None:
    first = digest(("a", 1, NOW - 5), ("b", 2, 0))
    assert digest(("a", 1, NOW - 5), ("b", 2, 0), sent_at_ms=NOW + 90_000) == first
    assert digest(("a", 1, NOW - 5), ("b", 2, 0), sequence=7, source_id="else") == first


def test_what_is_rejected_at_one_attempt_only_does_not_change_the_digest() -> None:
    ahead = ("a", 1.0, NOW + MAX_FUTURE_MS + 10)
    first, second = pack(ahead), pack(ahead, sent_at_ms=NOW + 1_000)
    assert (len(first.rejected), len(second.rejected)) == (1, 0)
    assert first.batch.content_digest == second.batch.content_digest


OTHERS: list[tuple[list[Sample], dict[str, str]]] = [
    ([("a", 1.0, NOW)], {"student": "bea"}),
    ([("a", 1.0, NOW)], {"app": "math"}),
    ([("a", 1.0, NOW)], {"classroom_id": "c"}),
    ([("a", 1.0, NOW)], {"timeline_id": "t"}),
    ([("a", 1.5, NOW)], {}),
    ([("a", 1.0, NOW - 1)], {}),
    ([("a", 1.0, 0)], {}),
    ([("b", 1.0, NOW)], {}),
    ([("a", 1.0, NOW), ("a", 1.0, NOW)], {}),
    ([("a", 1.0, NOW), ("?", 1.0, NOW)], {}),
    ([], {}),
]


@pytest.mark.parametrize(("samples", "fields"), OTHERS)
def test_other_content_has_another_digest(samples: list[Sample], fields: dict[str, str]) -> None:
    assert digest(*samples, **fields) != digest(("a", 1.0, NOW))


def test_no_two_contents_share_an_encoding() -> None:
    """Texts that are equal when strung together: the lengths before them tell them apart."""
    assert digest(("ab", 1, NOW), ("c", 1, NOW)) != digest(("a", 1, NOW), ("bc", 1, NOW))
    assert digest(student="ab", app="c") != digest(student="a", app="bc")


def test_the_digest_is_the_same_on_every_machine_and_version() -> None:
    """A changed encoding would make every retry across an update ALREADY_EXISTS."""
    found = digest(("error", 1, NOW), ("keypress", 0.5, 0), timeline_id="t")
    assert found.hex() == "9742d35700d0d67332909a1f43383aa5"


# --- columns -----------------------------------------------------------------------------------


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_a_column_survives_the_round_trip(numbers: list[int]) -> None:
    encoded = encode_column(numbers)
    assert list(decode_column(encoded)) == numbers
    expected = b"".join(number.to_bytes(8, "little", signed=True) for number in numbers)
    assert encoded == expected


def test_a_machine_of_the_other_byte_order_swaps(monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = [int.from_bytes(number.to_bytes(8, "little"), "big") for number in (1, 258)]
    monkeypatch.setattr(packing, "LITTLE_ENDIAN", not packing.LITTLE_ENDIAN)
    assert encode_column([1, 258]) == b"".join(n.to_bytes(8, "little") for n in swapped)
    assert list(decode_column(encode_column([1, 258]))) == [1, 258]
    ours = digest(("a", 1.5, NOW))  # swapped on a machine that needs no swap: another digest
    monkeypatch.undo()
    assert digest(("a", 1.5, NOW)) != ours


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c", "not ok"]),
            st.one_of(st.floats(-1e10, 1e10), st.just(math.nan)),
            st.integers(NOW - 10**6, NOW + 10**5),
        ),
        max_size=30,
    )
)
def test_every_metric_is_either_packed_or_rejected(samples: list[Sample]) -> None:
    packed = pack(*samples)
    rejected = {metric.index for metric in packed.rejected}
    expected: dict[str, tuple[list[int], list[int]]] = {}
    for index, (metric_type, value, time_ms) in enumerate(samples):
        valid = metric_type != "not ok" and abs(value) <= 9e9 and time_ms <= NOW + MAX_FUTURE_MS
        assert valid == (index not in rejected)
        if valid:
            offsets, values = expected.setdefault(metric_type, ([], []))
            offsets.append(time_ms - NOW)
            values.append(round(value * 1_000_000))
    assert columns(packed) == expected


def test_an_empty_batch_packs_to_nothing() -> None:
    packed = pack_batch(metrics_pb2.MetricBatch(), max_future_ms=0)
    assert not packed.batch.columns
    assert packed.rejected == ()
