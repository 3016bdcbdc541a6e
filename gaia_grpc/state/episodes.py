"""Episodes: one student in trouble in one app, from the first alarm to the end of the quiet time.

An episode opens with a finding, only ever gets more severe while it lasts, and ends when its
pattern has not held for `alert.exit_after`. It is looked at again at multiples of 5 s of its own
time, in the order (time, number): log time for live metrics, the timeline's clock in a replay.
After its end nothing opens for `alert.cooldown`, except what is more severe.

Context-free: what happens at its times is decided by its owner (alerts.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from gaia.command.v1 import metrics_record_pb2

from gaia_grpc.state.snapshot import Frozen

TICK_MS: Final = 5_000

EpisodeKey: TypeAlias = tuple[str, str, str, str]
"""(timeline_id, student_id, app_name, pattern group)."""


@dataclass(slots=True)
class Episode:
    """One episode; times are those of its timeline, in milliseconds."""

    number: int
    """Of its alert."""
    key: EpisodeKey
    severity: int
    opened_ms: int
    hold_until_ms: int
    """The pattern does not hold from here on, as far as is known."""
    closed_ms: int = -1
    """-1 while it is open."""
    due_ms: int = 0
    """When it is looked at again; a lower bound of when something is due."""
    mixed: bool = False
    """Whether its alert became mixed_struggle, one severity above the pattern's own."""
    peak: int = 0
    """The highest severity that its alert had; 0 where it ended before that was kept."""

    @property
    def is_open(self) -> bool:
        """Whether it goes on."""
        return self.closed_ms < 0

    def exit_ms(self, exit_after_ms: int) -> int:
        """The tick at which it ends if nothing more comes."""
        return next_tick(max(self.hold_until_ms, self.opened_ms) + exit_after_ms)

    def forget_ms(self, cooldown_ms: int) -> int:
        """The tick at which the quiet time after it is over."""
        return next_tick(self.closed_ms + cooldown_ms)


def next_tick(time_ms: int) -> int:
    """The first multiple of 5 s at or after a time."""
    return -(-time_ms // TICK_MS) * TICK_MS


class Episodes:
    """All episodes by key and by number."""

    __slots__ = ("_by_key", "_by_number", "frozen")

    def __init__(self) -> None:
        self._by_key: dict[EpisodeKey, Episode] = {}
        self._by_number: dict[int, Episode] = {}
        self.frozen = Frozen(self._by_number, encode_episode)
        """Who changes an episode calls `changing` with its number before."""

    def get(self, key: EpisodeKey) -> Episode | None:
        """The episode of a key, open or in its quiet time."""
        return self._by_key.get(key)

    def open_among(
        self, timeline_id: str, key: tuple[str, str], groups: Sequence[str]
    ) -> list[Episode]:
        """The open ones of a student in an app, of these groups and in their order."""
        found = [self._by_key.get((timeline_id, *key, group)) for group in groups]
        return [episode for episode in found if episode is not None and episode.is_open]

    def ended_after(
        self, timeline_id: str, key: tuple[str, str], groups: Sequence[str], after_ms: int
    ) -> int:
        """The highest severity of those that ended after a time; 0 where none did."""
        found = [self._by_key.get((timeline_id, *key, group)) for group in groups]
        return max(
            [
                max(episode.severity, episode.peak)
                for episode in found
                if episode is not None and not episode.is_open and episode.closed_ms > after_ms
            ],
            default=0,
        )

    def by_number(self, number: int) -> Episode:
        """The episode of an alert that is open or in its quiet time."""
        return self._by_number[number]

    def add(self, episode: Episode) -> None:
        """A new one; there must be none of its key."""
        self.frozen.changing(episode.number)
        self._by_key[episode.key] = episode
        self._by_number[episode.number] = episode

    def remove(self, episode: Episode) -> None:
        """Forgets it."""
        self.frozen.changing(episode.number)
        del self._by_key[episode.key]
        del self._by_number[episode.number]

    def all(self) -> list[Episode]:
        """All of them in the order of their numbers."""
        return [self._by_number[number] for number in sorted(self._by_number)]

    def load(self, data: bytes) -> Episode:
        """Takes in one of a snapshot; its owner sets the timers."""
        stored = metrics_record_pb2.EpisodeRecord.FromString(data)
        episode = Episode(
            number=stored.number,
            key=(stored.timeline_id, stored.student_id, stored.app_name, stored.pattern_group),
            severity=stored.severity,
            opened_ms=stored.opened_ms,
            hold_until_ms=stored.hold_until_ms,
            closed_ms=stored.closed_ms,
            due_ms=stored.due_ms,
            mixed=stored.mixed,
            peak=stored.peak,
        )
        if episode.key in self._by_key or episode.number in self._by_number:
            raise ValueError(f"the episode {episode.number} is there twice")
        self.add(episode)
        return episode


def encode_episode(number: int, episode: Episode) -> bytes:
    """An episode as an `EpisodeRecord`."""
    timeline_id, student_id, app_name, pattern_group = episode.key
    return metrics_record_pb2.EpisodeRecord(
        number=number,
        timeline_id=timeline_id,
        student_id=student_id,
        app_name=app_name,
        pattern_group=pattern_group,
        severity=episode.severity,
        opened_ms=episode.opened_ms,
        hold_until_ms=episode.hold_until_ms,
        closed_ms=episode.closed_ms,
        due_ms=episode.due_ms,
        mixed=episode.mixed,
        peak=episode.peak,
    ).SerializeToString(deterministic=True)
