"""Model `math-1`, for apps whose name begins with math. Written by `make fit`.

Fitted to 11 students of an algebra tutor (9329 windows, of which 8.1% were
followed by 5 minutes of unproductive struggle): ridge 30 towards 0, weights of 0 or more,
calibrated and counted on students that were left out. Typing is in none of these logs, so it has
no weight.
"""

from __future__ import annotations

from typing import Final

from gaia_grpc.state.models.form import Model, Weight

MODEL: Final = Model(
    version="math-1",
    since_level=3,
    base_rate=0.08,
    intercept=-2.826587,
    weights=(
        Weight("error_rate", 0.299973, 0.162472, 0.2031, 0.3036),
        Weight("wrong_of_last_10", 0.307631, 0.242772, 0.0, 0.1474),
        Weight("error_streak", 0.747347, 1.600377, 0.0, 0.0),
        Weight("stuck", 0.082888, 0.132613, 0.0, 0.0),
        Weight("error_rate_1min", 0.268218, 0.151364, 0.0583, 0.2665),
        Weight("hints", 0.777277, 0.713881, 0.0812, 0.9562),
        Weight("low_output", -2.725922, 0.688749, 0.118, 0.0),
        Weight("pace_change", 0.430504, 0.453225, 0.0311, 0.0),
        Weight("idle", 0.0, 1.0, 0.0, 0.0),
        Weight("corrections", 0.0, 1.0, 0.0, 0.0),
        Weight("blur", 0.0, 1.0, 0.0, 0.0),
        Weight("rapid_repeat", 0.0, 1.0, 0.0, 0.0),
    ),
    calibration=(
        (0.0, 0.0),
        (0.02, 0.014801),
        (0.04, 0.034438),
        (0.06, 0.056419),
        (0.08, 0.08),
        (0.1, 0.10476),
        (0.15, 0.170087),
        (0.2, 0.238107),
        (0.25, 0.306911),
        (0.3, 0.375154),
        (0.4, 0.506262),
        (0.5, 0.626262),
        (0.6, 0.732507),
        (0.8, 0.899846),
        (1.0, 1.0),
    ),
    reliability=(
        (0.0, 0.0259, 3554),
        (0.05, 0.0749, 2962),
        (0.1, 0.1037, 1534),
        (0.15, 0.1914, 695),
        (0.2, 0.2508, 303),
        (0.25, 0.2365, 148),
        (0.3, 0.2833, 120),
        (0.4, 0.3077, 13),
    ),
)
