"""The report: tables in Markdown, reliability plots as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np

from gaia_grpc.evaluation.live_window import AlarmScore
from gaia_grpc.evaluation.scores import BINS, Score

INTRODUCTION = """# What the detector is worth

It predicts **unproductive struggle in the next 5 minutes**. It reads no emotion, and nothing here
says anything about frustration. Students are never in the fit that judges them; thresholds are
chosen on the other students; intervals (95 %) come from drawing students again. All figures come
from the features, the detector and the episode machine that the peers run.
"""


class Target(NamedTuple):
    """One line of the table of targets."""

    test: str
    what: str
    wanted: str
    found: str
    met: bool


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    found = [" | ".join(head), " | ".join(["---"] * len(head))]
    found += [" | ".join(line) for line in lines]
    return "\n".join(f"| {line} |" for line in found) + "\n"


def score_lines(rows: Sequence[tuple[str, Score]]) -> str:
    """One predictor a line."""
    return table(
        ("predictor", "AUC", "within a student", "Brier", "ECE"),
        [
            (name, str(each.auc), f"{each.within_auc:.3f}", str(each.brier), f"{each.ece:.3f}")
            for name, each in rows
        ],
    )


def alarm_lines(rows: Sequence[AlarmScore]) -> str:
    """One rule a line."""
    return table(
        ("rule", "alerts", "an hour", "precision", "delay, median s", "reset, median s"),
        [
            (
                each.name,
                str(each.count),
                str(each.an_hour),
                str(each.precision),
                f"{each.delay_s:.0f}",
                f"{each.reset_s:.0f}",
            )
            for each in rows
        ],
    )


def target_lines(targets: Sequence[Target]) -> str:
    """Met or missed."""
    return table(
        ("test", "what", "target", "found", "met"),
        [
            (each.test, each.what, each.wanted, each.found, "yes" if each.met else "**no**")
            for each in targets
        ],
    )


def plot(path: Path, title: str, labels: np.ndarray, scores: np.ndarray) -> None:
    """A reliability plot: mean confidence and share of positives of ten bins of equal size."""
    mpl.use("Agg")
    from matplotlib import pyplot

    parts = [part for part in np.array_split(np.argsort(scores, kind="stable"), BINS) if len(part)]
    said = [float(scores[part].mean()) for part in parts]
    seen = [float(labels[part].mean()) for part in parts]
    figure, axes = pyplot.subplots(figsize=(5, 5))
    end = max(0.2, *said, *seen) * 1.1
    axes.plot([0, end], [0, end], color="grey", linewidth=1, label="perfect")
    axes.plot(said, seen, marker="o", label="ten bins")
    axes.axhline(float(labels.mean()), color="grey", linestyle=":", label="base rate")
    axes.set(title=title, xlabel="confidence", ylabel="share that struggled")
    axes.set(xlim=(0, end), ylim=(0, end))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
