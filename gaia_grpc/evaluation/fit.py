"""`make fit`: fits the model of an app type and writes it as a module of constants."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gaia_grpc.errors import ConfigError
from gaia_grpc.evaluation.fitting import fit_model
from gaia_grpc.evaluation.live_window import BASE_RATE, LEVEL
from gaia_grpc.evaluation.points import columns, labelled, read_logs, reference_detector, walk
from gaia_grpc.state import models
from gaia_grpc.state.models.form import Model

VERSION = "math-1"
BINS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
HEAD = '''"""Model `{version}`, for apps whose name begins with math. Written by `make fit`.

Fitted to {students} students of an algebra tutor ({points} windows, of which {share:.1%} were
followed by 5 minutes of unproductive struggle): ridge {ridge:g} towards 0, weights of 0 or more,
calibrated and counted on students that were left out. Typing is in none of these logs, so it has
no weight.
"""

from __future__ import annotations

from typing import Final

from gaia_grpc.state.models.form import Model, Weight

'''


def fitted(folder: Path) -> tuple[Model, str]:
    """The model of all students, and its module."""
    detector = reference_detector()
    moments = [
        moment for name, log in read_logs(folder).items() for moment in walk(name, log, detector)
    ]
    points = columns(labelled(moments))
    model = fit_model(
        points,
        np.arange(len(points.labels)),
        version=VERSION,
        since_level=LEVEL,
        base_rate=BASE_RATE,
        bins=BINS,
    )
    head = HEAD.format(
        version=VERSION,
        students=len(set(points.students)),
        points=len(points.labels),
        share=points.labels.mean(),
        ridge=30,
    )
    return model, head + source(model)


def source(model: Model) -> str:
    """The model as Python, in the one format."""
    lines = [
        "MODEL: Final = Model(",
        f'    version="{model.version}",',
        f"    since_level={model.since_level},",
        f"    base_rate={model.base_rate!r},",
        f"    intercept={model.intercept!r},",
        "    weights=(",
    ]
    lines += [
        f'        Weight("{each.feature}", {each.mean!r}, {each.deviation!r},'
        f" {each.now!r}, {each.level!r}),"
        for each in model.weights
    ]
    lines += ["    ),", "    calibration=("]
    lines += [f"        {place!r}," for place in model.calibration]
    lines += ["    ),", "    reliability=("]
    lines += [f"        {each!r}," for each in model.reliability]
    return "\n".join([*lines, "    ),", ")", ""])


def run(folder: Path, *, replace: bool) -> int:
    """Writes the module; refuses to change one that is there unless told to."""
    model, text = fitted(folder)
    path = Path(models.__file__).parent / f"{VERSION.replace('-', '_')}.py"
    if path.is_file() and path.read_text(encoding="utf-8") != text and not replace:
        raise ConfigError(
            f"{path.name} is there with other figures; a released model never changes:"
            " --replace writes over one that was not released"
        )
    path.write_text(text, encoding="utf-8")
    print(f"{path.name}: {len(model.weights)} features, intercept {model.intercept}")
    for each in model.weights:
        if each.now or each.level:
            print(f"  {each.feature:18} now {each.now:.3f}  level {each.level:.3f}")
    return 0
