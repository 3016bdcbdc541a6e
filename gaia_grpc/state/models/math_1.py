"""Model `math-1`: a first guess.

It is fitted to nothing: its figures are an ordering with a sober scale and no measured frequency.
The base rate stands between what observers coded in classrooms (.038) and algebra lessons (.077).
"""

from __future__ import annotations

from typing import Final

from gaia_grpc.state.models.form import Model, Weight

MODEL: Final = Model(
    version="math-1",
    since_level=3,
    base_rate=0.08,
    intercept=-2.4423470353692043,
    weights=(
        Weight("error_rate", 0.22, 0.15, 0.9, 0.1),
        Weight("wrong_of_last_10", 0.2, 0.2, 0.5, 0.1),
        Weight("error_streak", 0.5, 1.5, 0.5, 0.2),
        Weight("stuck", 0.15, 0.25, 0.5, 0.0),
        Weight("error_rate_1min", 0.24, 0.12, 0.35, 0.0),
        Weight("hints", 0.3, 0.6, 0.6, 0.1),
        Weight("low_output", -2.2, 0.8, 0.4, 0.1),
        Weight("pace_change", 0.3, 0.3, 0.3, 0.0),
        Weight("idle", 0.03, 0.1, 0.2, 0.0),
        Weight("corrections", 0.1, 0.1, 0.15, 0.0),
        Weight("blur", 0.1, 0.4, 0.1, 0.0),
        Weight("rapid_repeat", 0.1, 0.4, 0.1, 0.0),
    ),
    calibration=((0.0, 0.0), (1.0, 1.0)),
    reliability=(),
)
