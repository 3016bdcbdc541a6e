"""Typed metrics for typing, math, reading, piano and comprehension apps.

    async with client.metrics.typing(student_id="ben", classroom_id="5b") as app:
        app.keypress()
        app.error()
        app.words_per_minute(62)

Each method records one metric of its own name and returns at once, from any thread. The events are
what the detector reads (`EVENTS`); the five figures of each app (`FIGURES`) are for the teacher's
board and no evidence, so an app that sends both counts nothing twice. What a student typed, read or
played has no place here: `keypress` takes no argument.
"""

from __future__ import annotations

from collections.abc import Coroutine
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar, overload

from gaia_grpc.client.blocking_handles import BlockingBuffer
from gaia_grpc.client.buffer import MetricsBuffer
from gaia_grpc.client.counters import MetricsCounters

Buffer = TypeVar("Buffer", MetricsBuffer, BlockingBuffer)

EVENTS = (
    "correct",
    "error",
    "hint",
    "help",
    "hesitation",
    "idle",
    "response_time",
    "attempts",
    "blur",
    "rapid_repeat",
)
"""Every app has these; typing adds keypress and backspace, piano keypress."""


class App(Generic[Buffer]):
    """One student in one app: the events that any app has. `buffer` is underneath."""

    FIGURES: ClassVar[tuple[str, ...]] = ()

    def __init__(self, buffer: Buffer) -> None:
        """Made by `client.metrics.typing(...)` and its like."""
        self.buffer: Buffer = buffer

    def record(
        self, metric_type: str, value: float = 1.0, event_time_ms: int | None = None
    ) -> bool:
        """Any other metric; see `MetricsBuffer.record`."""
        return self.buffer.record(metric_type, value, event_time_ms)

    def correct(self) -> bool:
        """An answer, word or note was right."""
        return self.record("correct")

    def error(self) -> bool:
        """An answer, word or note was wrong; sent at once."""
        return self.record("error")

    def hint(self) -> bool:
        """A hint was shown."""
        return self.record("hint")

    def help(self) -> bool:
        """The student asked for help; sent at once."""
        return self.record("help")

    def hesitation(self, seconds: float) -> bool:
        """A pause within the work, when it ended; sent at once."""
        return self.record("hesitation", seconds)

    def idle(self, seconds: float) -> bool:
        """The student did nothing for so long."""
        return self.record("idle", seconds)

    def response_time(self, milliseconds: float) -> bool:
        """From the question to the answer."""
        return self.record("response_time", milliseconds)

    def attempts(self, count: float) -> bool:
        """Attempts that one step took."""
        return self.record("attempts", count)

    def blur(self) -> bool:
        """The app lost the focus."""
        return self.record("blur")

    def rapid_repeat(self) -> bool:
        """The same input again and again, too fast to be meant."""
        return self.record("rapid_repeat")

    @property
    def counters(self) -> MetricsCounters:
        """The counts of this moment."""
        return self.buffer.counters

    @overload
    def flush(self: App[MetricsBuffer], timeout: float = 30.0) -> Coroutine[Any, Any, None]: ...
    @overload
    def flush(self: App[BlockingBuffer], timeout: float = 30.0) -> None: ...
    def flush(self, timeout: float = 30.0) -> Coroutine[Any, Any, None] | None:
        """As `MetricsBuffer.flush`."""
        return self.buffer.flush(timeout)

    @overload
    def close(
        self: App[MetricsBuffer], timeout: float | None = None
    ) -> Coroutine[Any, Any, None]: ...
    @overload
    def close(self: App[BlockingBuffer], timeout: float | None = None) -> None: ...
    def close(self, timeout: float | None = None) -> Coroutine[Any, Any, None] | None:
        """As `MetricsBuffer.close`."""
        return self.buffer.close(timeout)  # type: ignore[func-returns-value]  # None if blocking

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self: App[MetricsBuffer],
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.buffer.__aexit__(kind, error, trace)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self: App[BlockingBuffer],
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.buffer.__exit__(kind, error, trace)


class TypingApp(App[Buffer]):
    """A typing tutor."""

    FIGURES = (
        "words_per_minute",
        "accuracy_percentage",
        "error_count",
        "correction_count",
        "session_duration",
    )

    def keypress(self) -> bool:
        """A key was pressed; which one is nobody's business."""
        return self.record("keypress")

    def backspace(self) -> bool:
        """Something was taken back."""
        return self.record("backspace")

    def words_per_minute(self, value: float) -> bool:
        """Speed now."""
        return self.record("words_per_minute", value)

    def accuracy_percentage(self, value: float) -> bool:
        """Share of right keys, 0 to 100."""
        return self.record("accuracy_percentage", value)

    def error_count(self, value: float) -> bool:
        """Errors of the exercise so far."""
        return self.record("error_count", value)

    def correction_count(self, value: float) -> bool:
        """Corrections of the exercise so far."""
        return self.record("correction_count", value)

    def session_duration(self, seconds: float) -> bool:
        """Length of the exercise so far."""
        return self.record("session_duration", seconds)


class MathApp(App[Buffer]):
    """A math tutor."""

    FIGURES = (
        "problems_solved",
        "problems_correct",
        "accuracy_percentage",
        "time_per_problem",
        "difficulty_level",
    )

    def problems_solved(self, value: float) -> bool:
        """Problems answered so far."""
        return self.record("problems_solved", value)

    def problems_correct(self, value: float) -> bool:
        """Problems answered rightly so far."""
        return self.record("problems_correct", value)

    def accuracy_percentage(self, value: float) -> bool:
        """Share of right answers, 0 to 100."""
        return self.record("accuracy_percentage", value)

    def time_per_problem(self, seconds: float) -> bool:
        """Time that a problem took."""
        return self.record("time_per_problem", seconds)

    def difficulty_level(self, value: float) -> bool:
        """Level of the problem, on the app's scale."""
        return self.record("difficulty_level", value)


class ReadingApp(App[Buffer]):
    """A reading app."""

    FIGURES = (
        "words_read",
        "reading_speed",
        "comprehension_score",
        "focus_time",
        "page_completion_rate",
    )

    def words_read(self, value: float) -> bool:
        """Words read so far."""
        return self.record("words_read", value)

    def reading_speed(self, value: float) -> bool:
        """Words a minute."""
        return self.record("reading_speed", value)

    def comprehension_score(self, value: float) -> bool:
        """Score of the questions on the text, 0 to 100."""
        return self.record("comprehension_score", value)

    def focus_time(self, seconds: float) -> bool:
        """Time with the text in the foreground."""
        return self.record("focus_time", seconds)

    def page_completion_rate(self, value: float) -> bool:
        """Share of the page that was read, 0 to 100."""
        return self.record("page_completion_rate", value)


class PianoApp(App[Buffer]):
    """A piano tutor."""

    FIGURES = (
        "notes_played",
        "notes_correct",
        "accuracy_percentage",
        "tempo_bpm",
        "hand_coordination_score",
    )

    def keypress(self) -> bool:
        """A key was struck; not which one."""
        return self.record("keypress")

    def notes_played(self, value: float) -> bool:
        """Notes so far."""
        return self.record("notes_played", value)

    def notes_correct(self, value: float) -> bool:
        """Right notes so far."""
        return self.record("notes_correct", value)

    def accuracy_percentage(self, value: float) -> bool:
        """Share of right notes, 0 to 100."""
        return self.record("accuracy_percentage", value)

    def tempo_bpm(self, value: float) -> bool:
        """Beats a minute."""
        return self.record("tempo_bpm", value)

    def hand_coordination_score(self, value: float) -> bool:
        """How well the hands go together, 0 to 100."""
        return self.record("hand_coordination_score", value)


class ComprehensionApp(App[Buffer]):
    """Questions about what was read, heard or seen."""

    FIGURES = (
        "questions_answered",
        "questions_correct",
        "accuracy_percentage",
        "confidence_score",
        "comprehension_level",
    )

    def questions_answered(self, value: float) -> bool:
        """Questions answered so far."""
        return self.record("questions_answered", value)

    def questions_correct(self, value: float) -> bool:
        """Questions answered rightly so far."""
        return self.record("questions_correct", value)

    def accuracy_percentage(self, value: float) -> bool:
        """Share of right answers, 0 to 100."""
        return self.record("accuracy_percentage", value)

    def confidence_score(self, value: float) -> bool:
        """How sure the student says to be, 0 to 100."""
        return self.record("confidence_score", value)

    def comprehension_level(self, value: float) -> bool:
        """Level reached, on the app's scale."""
        return self.record("comprehension_level", value)
