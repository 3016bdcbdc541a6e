"""What a watch is sent next: first all records it selects, page by page, then each change.

A watch is a place and no queue: the index up to which it was sent all changes, and how far its
picture has come. While the picture is sent, changes of what it holds already go in between, so the
place is never further behind than one page, however many records there are. The cost of a step is
that of what it sends and of the changes since the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

from gaia.command.v1 import query_pb2

from gaia_grpc.state.changes import Change, ChangeLog, Mark, Stub

EXAMINED_PER_STEP = 2_000
"""Records or changes that a step looks at: about a millisecond."""

Record = TypeVar("Record")


class Kind(Enum):
    """What an event tells; the names are those of the protos' `WatchKind`."""

    EXISTING = 1
    COMPLETE = 2
    CHANGED = 3
    REMOVED = 4
    RESYNC = 5


@dataclass(frozen=True, slots=True)
class Event:
    """One message of a watch; `numbers` are the records that it tells of."""

    kind: Kind
    index: int
    numbers: tuple[int, ...] = ()
    through_index: int = 0


@dataclass(slots=True)
class Step:
    """What comes next, and where the watch stands then."""

    place: query_pb2.WatchPlace
    events: list[Event] = field(default_factory=list)
    more: bool = False
    examined: int = 0
    """Records and changes that were looked at."""


@dataclass(frozen=True)
class Selection(Generic[Record, Mark]):
    """What a watch asks for, over one table."""

    records_after: Callable[[int], Iterable[Record]]
    """Live records with higher numbers in their order, or those of them that may match."""
    number_of: Callable[[Record], int]
    matches: Callable[[Record], bool]
    """Whether it is selected now."""
    matched: Callable[[int, Mark], bool]
    """Whether the record was selected when it had this mark."""


def next_step(
    log: ChangeLog[Mark, Stub],
    applied_index: int,
    place: query_pb2.WatchPlace | None,
    limit: int,
    selection: Selection[Record, Mark],
) -> Step:
    """Up to `limit` records for a watch that stands at `place` (None: at its beginning)."""
    step = Step(query_pb2.WatchPlace())
    if place is None:
        step.place.index = applied_index
    elif place.index < log.floor:
        step.events.append(Event(Kind.RESYNC, applied_index))
        step.place.index = applied_index
    else:
        step.place.CopyFrom(place)
    # A peer that lags knows nothing yet that the watch was not sent.
    if step.place.index > applied_index:
        return step
    _changes(log, applied_index, step, limit, selection)
    if not step.more and not step.place.complete:
        _picture(applied_index, step, limit, selection)
    return step


def _changes(
    log: ChangeLog[Mark, Stub],
    applied_index: int,
    step: Step,
    limit: int,
    selection: Selection[Record, Mark],
) -> None:
    place = step.place
    first = log.position_after(place.index)
    position = min(first + place.ordinal, log.end)
    while position < log.end and len(step.events) < limit and step.examined < EXAMINED_PER_STEP:
        change = log.at(position)
        step.examined += 1
        if place.complete or change.number <= place.picture_number:
            kind = _kind(log, change, position, selection)
            if kind is not None:
                whole = (
                    position + 1 == log.end or log.at(position + 1).log_index != change.log_index
                )
                through = change.log_index if whole else change.log_index - 1
                step.events.append(
                    Event(
                        kind, change.log_index, (change.number,), through if place.complete else 0
                    )
                )
        position += 1
    if position == log.end:
        place.index, place.ordinal = applied_index, 0
    else:
        place.index = log.at(position).log_index - 1
        place.ordinal = position - log.position_after(place.index)
        step.more = True


def _kind(
    log: ChangeLog[Mark, Stub],
    change: Change[Mark, Stub],
    position: int,
    selection: Selection[Record, Mark],
) -> Kind | None:
    """What a watch is told of one change.

    Where the record was changed again since, the later change tells of it. That it left what is
    selected is told in any case: the later change does not know what the record was before.
    """
    if change.after is not None and selection.matched(change.number, change.after):
        return Kind.CHANGED if log.is_latest(position) else None
    if change.before is not None and selection.matched(change.number, change.before):
        return Kind.REMOVED
    return None


def _picture(
    applied_index: int, step: Step, limit: int, selection: Selection[Record, Mark]
) -> None:
    place = step.place
    room = max(limit - len(step.events), 0)
    numbers: list[int] = []
    for record in selection.records_after(place.picture_number):
        if len(numbers) >= room or step.examined >= EXAMINED_PER_STEP:
            step.more = True
            break
        step.examined += 1
        place.picture_number = selection.number_of(record)
        if selection.matches(record):
            numbers.append(place.picture_number)
    if numbers:
        step.events.append(Event(Kind.EXISTING, applied_index, tuple(numbers)))
    if not step.more:
        place.complete = True
        step.events.append(Event(Kind.COMPLETE, applied_index, (), applied_index))
