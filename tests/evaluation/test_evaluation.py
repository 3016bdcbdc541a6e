"""Fitting and judging: what is written is what was fitted, and a replay equals the offline run."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the extra `evaluate` is not installed")
pytest.importorskip("matplotlib", reason="the extra `evaluate` is not installed")

import numpy as np

from gaia_grpc.classroom.recordings import RecordedMetric, Recording
from gaia_grpc.evaluation import fit, replayed
from gaia_grpc.evaluation.fitting import fit_model, fit_scale, fit_weights, stretch
from gaia_grpc.evaluation.live_window import LEVEL, alarms, no_reset
from gaia_grpc.evaluation.points import GRID_MS, Log, Step, columns, label_of, labelled, walk
from gaia_grpc.evaluation.scores import bootstrap, calibration_error
from gaia_grpc.evaluation.wheel_spinning import outcome, undecided
from gaia_grpc.state.models import MODELS
from gaia_grpc.state.settings import Settings
from gaia_grpc.state.struggle import Detector

BEGIN_MS = 1_700_000_000_000


def lesson(student: str, seed: int, wrong: float, minutes: int = 30) -> list[RecordedMetric]:
    """A student who answers every 10 s or so."""
    draw = random.Random(seed)
    at_ms = BEGIN_MS + seed * 137
    found = []
    while at_ms < BEGIN_MS + minutes * 60_000:
        at_ms += draw.randint(3_000, 17_000)
        kind = "error" if draw.random() < wrong else "correct"
        found.append(RecordedMetric(at_ms, student, "math", kind, 1.0))
        if draw.random() < wrong / 2:
            found.append(RecordedMetric(at_ms, student, "math", "hint", 1.0))
    return found


def log_of(metrics: list[RecordedMetric]) -> Log:
    steps = [
        Step(
            metric.at_ms, int(metric.metric_type != "correct"), int(metric.metric_type == "correct")
        )
        for metric in metrics
    ]
    return Log(metrics, steps)


def test_a_label_says_how_the_next_5_minutes_go() -> None:
    good = [Step(1_000 * at, 0, 1) for at in range(1, 11)]
    bad = [Step(1_000 * at, 2, 1) for at in range(1, 11)]
    wrong = [Step(1_000 * at, 1, int(at <= 4)) for at in range(1, 11)]
    assert [label_of(each, 0, 10) for each in (good, bad, wrong)] == [0, 1, 1]
    assert label_of(good, 1_000, 10) is None
    assert label_of(good, 1_000, 9) == 0
    assert label_of([*good[:9], Step(300_001, 0, 1)], 0, 10) is None


def test_wheel_spinning_is_ten_answers_without_three_right_in_a_row() -> None:
    def answers(pattern: str) -> list[dict[str, str]]:
        return [{"correct": mark} for mark in pattern]

    assert outcome(answers("0111")) == 0
    assert outcome(answers("0110110110")) == 1
    assert outcome(answers("01101101101")) == 1
    assert outcome(answers("011011")) is None
    assert undecided(answers("01111"), 3)
    assert not undecided(answers("1110"), 3)


def test_weights_are_never_below_0() -> None:
    draw = np.random.default_rng(1)
    inputs = draw.normal(size=(2_000, 2))
    odds = -1 + 1.5 * inputs[:, 0] - 2 * inputs[:, 1]
    labels = (draw.random(2_000) < 1 / (1 + np.exp(-odds))).astype(float)
    weights = fit_weights(inputs, labels)
    assert weights[1] > 0.5
    assert weights[2] == 0


def test_the_calibration_stretches_to_what_was_seen() -> None:
    draw = np.random.default_rng(2)
    true = draw.uniform(0.01, 0.6, 20_000)
    labels = (draw.random(20_000) < true).astype(float)
    timid = stretch(true, 0.08, 0.5)
    assert fit_scale(timid, labels, 0.08) == pytest.approx(2, rel=0.1)
    assert calibration_error(labels, stretch(timid, 0.08, 2.0)) < 0.02


def test_a_bootstrap_draws_students() -> None:
    groups = np.array(["a"] * 10 + ["b"] * 90)
    values = np.array([0.0] * 10 + [1.0] * 90)
    found = bootstrap(groups, lambda rows: float(values[rows].mean()))
    assert (found.value, found.low, found.high) == (0.9, 0.0, 1.0)


def test_the_module_that_is_written_is_the_model() -> None:
    detector = Detector(Settings())
    logs = {f"s{at}": log_of(lesson(f"s{at}", at, 0.1 + 0.2 * at)) for at in range(4)}
    moments = [each for name, log in logs.items() for each in walk(name, log, detector)]
    points = columns(labelled(moments))
    model = fit_model(
        points,
        np.arange(len(points.labels)),
        version="math-9",
        since_level=LEVEL,
        base_rate=0.08,
        bins=fit.BINS,
    )
    names: dict[str, object] = {}
    text = "from typing import Final\n"
    text += "from gaia_grpc.state.models.form import Model, Weight\n"
    exec(text + fit.source(model), names)
    assert names["MODEL"] == model
    judged = Detector(Settings(), {**MODELS, "math-1": model})
    assert {each.estimate.model.version for each in walk("s1", logs["s1"], judged)} == {"math-9"}


def test_alarms_keep_the_cooldown() -> None:
    log = log_of(lesson("s", 1, 0.5, minutes=20))
    moments = list(walk("s", log, Detector(Settings()), min_steps=3))
    flicker = iter(range(10_000))
    found = alarms(moments, lambda _: next(flicker) % 2 == 0, no_reset)
    gaps = [later.at_ms - one.at_ms for one, later in pairwise(found)]
    assert min(gaps) >= 300_000 + GRID_MS


def test_without_data_it_says_so_and_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gaia_grpc.evaluation", "evaluate", "--data", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "research logs are not in" in ended.stderr


@pytest.mark.e2e
@pytest.mark.timeout(180)
async def test_t2_a_replay_at_two_speeds_equals_the_offline_run() -> None:
    """To the bit: patterns, the model's episodes, confidences and explanations."""
    metrics = [each for at in range(4) for each in lesson(f"s{at}", at, 0.15 + 0.25 * at, 40)]
    recording = Recording(metrics=sorted(metrics, key=lambda metric: metric.at_ms))
    reference, runs = await replayed.compare(recording)
    assert {each.pattern for each in reference.alerts} >= {"struggle", "excessive_errors"}
    assert len(runs) == 2
    for run in runs:
        assert run.events == reference.events
