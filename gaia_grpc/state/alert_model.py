"""The model beside the patterns: its estimates, and one episode machine a student in an app.

From feature level 3 on the detector (struggle.py) looks at a window after a batch, throttled, and
at the times that the machine names while it has something to wait for: log time live, else the
timeline's clock. After each look the alerts follow the machine (alert_episodes.py). Below, the
first version's model only says how sure a pattern's alert is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from gaia.alert.v1 import alert_pb2
from gaia.command.v1 import metrics_record_pb2

from gaia_grpc.state import detector as first_model
from gaia_grpc.state.agenda import Agenda
from gaia_grpc.state.alert_store import LIFE_LEVEL
from gaia_grpc.state.alert_text import describe
from gaia_grpc.state.context import Context
from gaia_grpc.state.patterns import Finding
from gaia_grpc.state.snapshot import Frozen, Part, records_section
from gaia_grpc.state.struggle import Detector, Estimate
from gaia_grpc.state.struggle_machine import IDLE, Machine, next_check_ms, read_ladder, step
from gaia_grpc.state.struggle_text import describe_alert
from gaia_grpc.state.timelines import Key, Timeline, Timelines
from gaia_grpc.state.windows import StudentWindow

TIMER: Final = "alert_struggle"
SEPARATOR: Final = "\n"
"""Between student and app in the key of a timer; no id can hold it."""

AnyEstimate: TypeAlias = Estimate | first_model.Estimate
Follower: TypeAlias = Callable[[Timeline, Key, StudentWindow | None, Estimate | None, int], None]
Place: TypeAlias = tuple[str, str, str]
"""(timeline_id, student_id, app_name)."""


class ModelLooks:
    """Asks the model, and keeps the machines that are not idle."""

    def __init__(self, context: Context, timelines: Timelines, agenda: Agenda) -> None:
        self._context = context
        self._timelines = timelines
        self._agenda = agenda
        self._machines: dict[Place, tuple[Machine, int]] = {}
        """With the time of the next look."""
        self._frozen = Frozen(self._machines, _encode)
        self.follower: Follower = _nobody
        agenda.register(TIMER, self._due)
        self.parts: Sequence[Part] = (records_section("struggle", self._frozen, self._load),)
        self.read_settings()

    def read_settings(self) -> None:
        """The models in use, and the thresholds."""
        settings = self._context.settings
        self._window_ms = settings.milliseconds("metrics.window")
        self._detector = Detector(settings)
        self._ladder = read_ladder(settings)

    # --- estimates

    def estimate(self, window: StudentWindow, app_name: str, end_ms: int) -> AnyEstimate:
        """The model on the window that ends then."""
        if self._context.feature_level < LIFE_LEVEL:
            return first_model.estimate(window, app_name, end_ms, self._window_ms)
        return self._detector.evaluate(window, app_name, end_ms)

    def describe(
        self,
        alert: alert_pb2.Alert,
        findings: Sequence[Finding],
        found: AnyEstimate,
        pattern_window_ms: int,
    ) -> None:
        """Writes what stands behind an alert into it; from level 3 on pattern, severity and push
        are the caller's."""
        if isinstance(found, Estimate):
            describe_alert(alert, findings, found, pattern_window_ms=pattern_window_ms)
        else:
            describe(
                alert,
                findings[0],
                found,
                errors_window_ms=pattern_window_ms,
                window_ms=self._window_ms,
            )

    # --- machines

    def severity(self, timeline_id: str, key: Key) -> int:
        """Where the machine of a student in an app stands; 0 while it has no episode."""
        known = self._machines.get((timeline_id, *key))
        return IDLE if known is None else known[0].severity

    def look(self, timeline: Timeline, key: Key, window: StudentWindow) -> None:
        """Metrics came into a window, which may be changed."""
        clock_ms = timeline.clock_ms
        if not self._detector.due(window, clock_ms):
            return
        found = self._detector.evaluate(window, key[1], clock_ms)
        self._detector.learn(window, found, clock_ms)
        self._step(timeline, key, window, found, clock_ms)

    def _due(self, timeline_id: str, key: int | str, now_ms: int) -> None:
        student_id, _, app_name = str(key).partition(SEPARATOR)
        timeline = self._timelines.get(timeline_id)
        if timeline is None:
            return
        window = timeline.windows.get((student_id, app_name))
        if window is None:
            # Forgotten, after a long silence or with the student.
            self._drop((timeline_id, student_id, app_name))
            self.follower(timeline, (student_id, app_name), None, None, IDLE)
            return
        found = self._detector.evaluate(window, app_name, now_ms)
        self._step(timeline, (student_id, app_name), window, found, now_ms)

    def _step(
        self, timeline: Timeline, key: Key, window: StudentWindow, found: Estimate, now_ms: int
    ) -> None:
        place = (timeline.timeline_id, *key)
        known = self._machines.get(place)
        machine = Machine() if known is None else known[0]
        if known is not None:
            self._frozen.changing(place)
        step(machine, now_ms, found, self._ladder)
        due_ms = next_check_ms(machine, now_ms)
        if due_ms is None:
            if known is not None:
                self._drop(place)
        else:
            if known is None:
                self._frozen.changing(place)
            self._machines[place] = (machine, due_ms)
            self._set_due(place, due_ms)
        if known is not None or due_ms is not None:
            self.follower(timeline, key, window, found, machine.severity)

    def _drop(self, place: Place) -> None:
        if place in self._machines:
            self._frozen.changing(place)
            del self._machines[place]
            self._set_due(place, None)

    def _set_due(self, place: Place, due_ms: int | None) -> None:
        timeline_id, student_id, app_name = place
        self._agenda.set(timeline_id, TIMER, f"{student_id}{SEPARATOR}{app_name}", due_ms)

    def end_timeline(self, timeline_id: str) -> None:
        """A timeline is forgotten."""
        for place in [place for place in self._machines if place[0] == timeline_id]:
            self._drop(place)

    def forget_student(self, student_id: str) -> None:
        """Removes a student's machines."""
        for place in [place for place in self._machines if place[1] == student_id]:
            self._drop(place)

    def _load(self, data: bytes) -> None:
        stored = metrics_record_pb2.StruggleRecord.FromString(data)
        place = (stored.timeline_id, stored.student_id, stored.app_name)
        if place in self._machines:
            raise ValueError(f"a machine of {place} is there twice")
        self._machines[place] = (Machine.unpack(list(stored.machine)), stored.due_ms)
        self._set_due(place, stored.due_ms)


def _encode(place: Place, standing: tuple[Machine, int]) -> bytes:
    return metrics_record_pb2.StruggleRecord(
        timeline_id=place[0],
        student_id=place[1],
        app_name=place[2],
        machine=standing[0].pack(),
        due_ms=standing[1],
    ).SerializeToString(deterministic=True)


def _nobody(
    timeline: Timeline,
    key: Key,
    window: StudentWindow | None,
    found: Estimate | None,
    severity: int,
) -> None:
    """Until the alerts follow."""
    del timeline, key, window, found, severity
