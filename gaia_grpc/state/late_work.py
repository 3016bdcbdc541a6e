"""How much of the past one command may write anew.

What comes late changes a packed record, which is read and packed again with all of its types. A few
metrics can so cost a thousand times as much as on time: one in each of 96 past windows that have
1,000 types each. An entry can't be interrupted, so a command has a bound; what goes beyond it is
refused for now, and sent again it is the next command's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gaia_grpc.state.history_store import TimelineHistory
from gaia_grpc.state.timelines import Key

TYPES_A_COMMAND: Final = 10_000
"""Types of packed records that are written anew: some 40 ms. A single batch may go beyond it."""


class LateWork:
    """What is left for the command that is applied."""

    def __init__(self) -> None:
        self._left = TYPES_A_COMMAND

    def begin_command(self) -> None:
        """A command begins."""
        self._left = TYPES_A_COMMAND

    def takes(
        self,
        past: TimelineHistory | None,
        key: Key,
        base_ms: int,
        offsets_ms: Iterable[Iterable[int]],
    ) -> bool:
        """Whether there is room for a batch with metrics at these times; takes it, if so."""
        types = _types(past, key, base_ms, offsets_ms) if past is not None else 0
        if types and types > self._left and self._left < TYPES_A_COMMAND:
            return False
        self._left -= types
        return True


def _types(
    past: TimelineHistory, key: Key, base_ms: int, offsets_ms: Iterable[Iterable[int]]
) -> int:
    """Types of the records that stand where a batch has something."""
    history = past.keys.get(key)
    if history is None or not history.ends_ms:
        return 0
    newest_ms = history.ends_ms[-1] - base_ms
    ends_ms = {
        past.grid.bounds(base_ms + offset_ms)[1]
        for column in offsets_ms
        for offset_ms in column
        if offset_ms <= newest_ms
    }
    found = [history.find(end_ms) for end_ms in ends_ms]
    return sum([len(history.types[at]) for at in found if at is not None])
