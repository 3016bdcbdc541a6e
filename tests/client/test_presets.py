"""The typed metrics of each kind of app: what each method sends, and that no key is in it."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from gaia_grpc.client import connect_blocking, presets
from gaia_grpc.client.buffer import URGENT_TYPES
from tests.client.conftest import Connect
from tests.client.fake_peer import FakePeer
from tests.client.test_buffer import Store

Peers = tuple[FakePeer, FakePeer]

FIGURES = {
    "typing": "words_per_minute accuracy_percentage error_count correction_count session_duration",
    "math": (
        "problems_solved problems_correct accuracy_percentage time_per_problem difficulty_level"
    ),
    "reading": "words_read reading_speed comprehension_score focus_time page_completion_rate",
    "piano": "notes_played notes_correct accuracy_percentage tempo_bpm hand_coordination_score",
    "comprehension": (
        "questions_answered questions_correct accuracy_percentage confidence_score "
        "comprehension_level"
    ),
}
INPUT_OF_THE_DETECTOR = {
    *("error", "errors", "mistake", "correct", "completion", "accuracy", "response_time"),
    *("backspace", "correction", "keypress", "hint", "help", "idle", "hesitation", "pause"),
    *("attempts", "blur", "rapid_repeat"),
}
OTHER = {"record", "flush", "close", "buffer", "counters", "FIGURES"}


@pytest.mark.parametrize("name", FIGURES)
async def test_each_method_sends_one_metric_of_its_own_name(
    peers: Peers, connect: Connect, name: str
) -> None:
    store = Store(*peers)
    client = await connect(peers[0])
    make = getattr(client.metrics, name)
    async with make(student_id="s", classroom_id="c") as app:
        assert list(app.FIGURES) == FIGURES[name].split()
        methods = sorted(
            part for part in dir(app) if not part.startswith("_") and part not in OTHER
        )
        for number, method in enumerate(methods, start=2):
            function: Any = getattr(app, method)
            takes = list(inspect.signature(function).parameters)
            assert len(takes) <= 1
            assert function(float(number)) if takes else function()
        await app.flush()
        assert app.counters.acknowledged == len(methods)
    metrics = [metric for batch in store.batches.values() for metric in batch.metrics]
    assert [metric.metric_type for metric in metrics] == methods
    assert set(methods) - set(app.FIGURES) <= INPUT_OF_THE_DETECTOR
    assert set(methods) >= {*app.FIGURES, *presets.EVENTS}
    assert not set(app.FIGURES) & (INPUT_OF_THE_DETECTOR | URGENT_TYPES), "nothing counts twice"
    assert {batch.app_name for batch in store.batches.values()} == {name}
    assert {batch.classroom_id for batch in store.batches.values()} == {"c"}


def test_no_key_can_be_told() -> None:
    for name in ("keypress", "backspace"):
        assert list(inspect.signature(getattr(presets.TypingApp, name)).parameters) == ["self"]
    assert list(inspect.signature(presets.PianoApp.keypress).parameters) == ["self"]


async def test_the_same_apps_without_asyncio(peers: Peers) -> None:
    store = Store(*peers)

    def script() -> int:
        with connect_blocking(peers[0].address) as client:
            with client.metrics.typing(student_id="s", app_name="keys", flush_size=2) as app:
                assert app.keypress()
                assert app.words_per_minute(62)
                app.flush()
            for name in set(FIGURES) - {"typing"}:
                with getattr(client.metrics, name)(student_id="s") as app:
                    assert app.correct()
            return client.metrics.counters.acknowledged

    assert await asyncio.to_thread(script) == 6
    values = {
        metric.metric_type: metric.value
        for batch in store.batches.values()
        for metric in batch.metrics
    }
    assert values == {"keypress": 1, "words_per_minute": 62, "correct": 1}
