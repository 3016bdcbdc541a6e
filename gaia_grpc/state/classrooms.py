"""Classrooms: which teachers and students belong together. Ids are the school's pseudonyms.

A record is never changed, only replaced as a whole, so a snapshot needs no copies: it holds the
records of its index, whatever takes their places meanwhile.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from gaia.classroom.v1 import classroom_pb2
from gaia.command.v1 import command_pb2, query_pb2, snapshot_pb2

from gaia_grpc.state import page_tokens, refusal, topics
from gaia_grpc.state.context import CommandHandler, Context, QueryHandler
from gaia_grpc.state.messages import timestamp
from gaia_grpc.state.refusal import Refused, refused
from gaia_grpc.state.rosters import MAX_STUDENTS, MAX_TEACHERS
from gaia_grpc.state.snapshot import Part, Section

PIECE_MEMBERS: Final = 500
"""In one record of a snapshot: some 50 us."""
PAGE_MEMBERS: Final = 20_000
"""A page of classrooms ends after this many members, short and with a token: some 2 ms."""
FULL_RETRY_MS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Classroom:
    """One classroom; members are sorted and each is there once."""

    classroom_id: str
    name: str
    teacher_ids: tuple[str, ...]
    student_ids: tuple[str, ...]
    update_ms: int

    @property
    def size(self) -> int:
        """Teachers and students."""
        return len(self.teacher_ids) + len(self.student_ids)

    def message(self) -> classroom_pb2.Classroom:
        """The classroom as the contract has it."""
        return classroom_pb2.Classroom(
            classroom_id=self.classroom_id,
            name=self.name,
            teacher_ids=self.teacher_ids,
            student_ids=self.student_ids,
            update_time=timestamp(self.update_ms),
        )


class ClassroomTable:
    """Handles PutClassroom and the reading of classrooms; also tells a kept put again (`Replay`).

    A put may hold 1.4 MB of ids, which would be kept 15 minutes for each; so a repeated one is
    answered with the classroom as it is, which also brings back nobody who was deleted meanwhile.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._records: dict[str, Classroom] = {}
        self._ids: list[str] = []
        """Of all classrooms, sorted."""
        self._by_teacher: dict[str, list[str]] = {}
        """Ids of a teacher's classrooms, sorted."""
        self._members = 0
        self._pieces: list[Classroom] = []
        self.commands: Mapping[str, CommandHandler] = {"put_classroom": self.put}
        self.queries: Mapping[str, QueryHandler] = {
            "get_classroom": self.get,
            "list_classrooms": self.list_page,
        }
        self.parts: Sequence[Part] = (
            Section("classroom", self._freeze, self._load, loaded=self._loaded),
        )

    def settings_changed(self) -> None:
        """A lower limit refuses what is new and removes nothing."""

    def classrooms_of(self, teacher_id: str) -> Sequence[str]:
        """Ids of a teacher's classrooms, sorted; not to be changed."""
        return self._by_teacher.get(teacher_id, ())

    def teachers_of(self, classroom_id: str) -> Sequence[str]:
        """Ids of a classroom's teachers, sorted; none where there is no roster."""
        known = self._records.get(classroom_id)
        return () if known is None else known.teacher_ids

    # --- commands

    def put(self, body: command_pb2.PutClassroom) -> command_pb2.CommandResult:
        """Creates a classroom, or replaces the whole of it."""
        if not body.classroom_id:
            raise refusal.invalid("classroom_id", "classroom_id is empty")
        teachers = _members("teacher_ids", body.teacher_ids, MAX_TEACHERS)
        students = _members("student_ids", body.student_ids, MAX_STUDENTS)
        record = Classroom(body.classroom_id, body.name, teachers, students, self._context.now_ms)
        known = self._records.get(record.classroom_id)
        if known is not None and replace(record, update_ms=known.update_ms) == known:
            return command_pb2.CommandResult(classroom=known.message())
        settings = self._context.settings
        if known is None and len(self._ids) >= settings.integer("classroom.max_classrooms"):
            raise _full("TOO_MANY_CLASSROOMS", "too many classrooms (classroom.max_classrooms)")
        grown = self._members + record.size - (0 if known is None else known.size)
        if grown > self._members and grown > settings.integer("classroom.max_members"):
            raise _full(
                "TOO_MANY_MEMBERS",
                f"all classrooms together would have {grown} members (classroom.max_members)",
            )
        self._replace(known, record)
        self._context.touch(topics.CLASSROOMS)
        return command_pb2.CommandResult(classroom=record.message())

    def forget_student(self, student_id: str) -> int:
        """Takes a student out of every classroom; returns of how many.

        A bisection for each classroom: some 2 us, and 20 ms for the most that there can be.
        """
        left = 0
        for classroom_id in self._ids:
            known = self._records[classroom_id]
            place = bisect_left(known.student_ids, student_id)
            if known.student_ids[place : place + 1] == (student_id,):
                students = known.student_ids[:place] + known.student_ids[place + 1 :]
                self._replace(
                    known, replace(known, student_ids=students, update_ms=self._context.now_ms)
                )
                left += 1
        return left

    def _replace(self, known: Classroom | None, record: Classroom) -> None:
        self._records[record.classroom_id] = record
        if known is None:
            insort(self._ids, record.classroom_id)
        else:
            self._members -= known.size
            for teacher_id in known.teacher_ids:
                ids = self._by_teacher[teacher_id]
                del ids[bisect_left(ids, record.classroom_id)]
                if not ids:
                    del self._by_teacher[teacher_id]
        self._members += record.size
        for teacher_id in record.teacher_ids:
            insort(self._by_teacher.setdefault(teacher_id, []), record.classroom_id)

    # --- Replay

    def kept(self, result: command_pb2.CommandResult) -> bytes:
        """The id alone."""
        slim = result
        if result.HasField("classroom"):
            named = classroom_pb2.Classroom(classroom_id=result.classroom.classroom_id)
            slim = command_pb2.CommandResult(classroom=named)
        return slim.SerializeToString(deterministic=True)

    def again(self, outcome: bytes) -> command_pb2.CommandResult:
        """The classroom as it is now."""
        result = command_pb2.CommandResult.FromString(outcome)
        if not result.HasField("classroom"):
            return result
        record = self._records[result.classroom.classroom_id]
        return command_pb2.CommandResult(classroom=record.message())

    # --- queries

    def get(self, body: classroom_pb2.GetClassroomRequest, now_ms: int) -> query_pb2.QueryResult:
        """One classroom."""
        del now_ms
        record = self._records.get(body.classroom_id)
        if record is None:
            raise refusal.not_found("classroom", body.classroom_id)
        answer = classroom_pb2.GetClassroomResponse(classroom=record.message())
        return query_pb2.QueryResult(get_classroom=answer)

    def list_page(
        self, body: classroom_pb2.ListClassroomsRequest, now_ms: int
    ) -> query_pb2.QueryResult:
        """One page in the order of the ids; short where its classrooms are large."""
        del now_ms
        size = page_tokens.page_size(body.page_size)
        after = page_tokens.decode(body, body.page_token)
        ids = self.classrooms_of(body.teacher_id) if body.teacher_id else self._ids
        answer = classroom_pb2.ListClassroomsResponse()
        room = PAGE_MEMBERS
        start = bisect_right(ids, after)
        for place in range(start, len(ids)):
            if place - start == size or room <= 0:
                answer.next_page_token = page_tokens.encode(body, ids[place - 1])
                break
            record = self._records[ids[place]]
            answer.classrooms.append(record.message())
            room -= record.size
        return query_pb2.QueryResult(list_classrooms=answer)

    # --- snapshots

    def _freeze(self) -> Iterator[bytes]:
        # Copied now and not in the generator's first step: the table may have changed by then.
        return _encode([self._records[classroom_id] for classroom_id in self._ids])

    def _load(self, data: bytes) -> None:
        stored = snapshot_pb2.ClassroomRecord.FromString(data)
        piece = Classroom(
            stored.classroom_id,
            stored.name,
            tuple(stored.teacher_ids),
            tuple(stored.student_ids),
            stored.update_ms,
        )
        if stored.further_piece:
            if not self._pieces:
                raise ValueError("a piece of no classroom")
            self._pieces.append(piece)
            return
        self._complete()
        self._pieces = [piece]

    def _complete(self) -> None:
        """Puts the pieces of a classroom together and takes it in."""
        if not self._pieces:
            return
        record = replace(
            self._pieces[0],
            teacher_ids=tuple(each for piece in self._pieces for each in piece.teacher_ids),
            student_ids=tuple(each for piece in self._pieces for each in piece.student_ids),
        )
        self._pieces = []
        if self._ids and record.classroom_id <= self._ids[-1]:
            raise ValueError(f"the classroom {record.classroom_id} is out of order")
        for members in (record.teacher_ids, record.student_ids):
            if list(members) != sorted(set(members)):
                raise ValueError(f"members of {record.classroom_id} are out of order")
        self._replace(None, record)

    def _loaded(self) -> None:
        self._complete()


def _members(field: str, ids: Sequence[str], most: int) -> tuple[str, ...]:
    if len(ids) > most:
        raise refusal.invalid(field, f"{field} has {len(ids)} items, at most {most} are allowed")
    members = tuple(sorted(set(ids)))
    if members[:1] == ("",):
        raise refusal.invalid(field, f"{field} has an empty item")
    return members


def _full(reason: str, message: str) -> Refused:
    return refused(refusal.RESOURCE_EXHAUSTED, reason, message, retry_after_ms=FULL_RETRY_MS)


def _encode(records: Sequence[Classroom]) -> Iterator[bytes]:
    """Each as `ClassroomRecord` messages: one, or more where it is large."""
    for record in records:
        stored = snapshot_pb2.ClassroomRecord(
            classroom_id=record.classroom_id, name=record.name, update_ms=record.update_ms
        )
        room = PIECE_MEMBERS
        for field, members in (
            ("teacher_ids", record.teacher_ids),
            ("student_ids", record.student_ids),
        ):
            first = 0
            while first < len(members):
                if not room:
                    yield stored.SerializeToString(deterministic=True)
                    stored = snapshot_pb2.ClassroomRecord(further_piece=True)
                    room = PIECE_MEMBERS
                taken = members[first : first + room]
                getattr(stored, field).extend(taken)
                first += len(taken)
                room -= len(taken)
        yield stored.SerializeToString(deterministic=True)
