"""ClassroomService, typed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from gaia.classroom.v1 import classroom_pb2

from gaia_grpc.client.connection import Connection
from gaia_grpc.client.resources import LINEARIZABLE, Consistency


class ClassroomsApi:
    """ClassroomService: who belongs to a classroom. Ids are the school's pseudonyms."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def put(
        self,
        classroom_id: str,
        *,
        name: str = "",
        teacher_ids: Sequence[str] = (),
        student_ids: Sequence[str] = (),
        request_id: str = "",
        timeout: float | None = None,
    ) -> classroom_pb2.PutClassroomResponse:
        """Creates a classroom, or replaces the whole of it."""
        return await self._connection.call(
            lambda peer: peer.classrooms.PutClassroom,
            classroom_pb2.PutClassroomRequest(
                classroom_id=classroom_id,
                name=name,
                teacher_ids=teacher_ids,
                student_ids=student_ids,
                request_id=request_id,
            ),
            timeout=timeout,
        )

    async def get(
        self,
        classroom_id: str,
        *,
        consistency: Consistency = LINEARIZABLE,
        timeout: float | None = None,
    ) -> classroom_pb2.GetClassroomResponse:
        """Reads one classroom."""
        return await self._connection.call(
            lambda peer: peer.classrooms.GetClassroom,
            classroom_pb2.GetClassroomRequest(classroom_id=classroom_id, consistency=consistency),
            timeout=timeout,
        )

    async def list(
        self,
        *,
        teacher_id: str = "",
        page_size: int = 1_000,
        consistency: Consistency = LINEARIZABLE,
    ) -> AsyncIterator[classroom_pb2.Classroom]:
        """All classrooms, or all of a teacher, in the order of their ids, page by page."""
        request = classroom_pb2.ListClassroomsRequest(
            teacher_id=teacher_id, page_size=page_size, consistency=consistency
        )
        while True:
            page = await self._connection.call(lambda peer: peer.classrooms.ListClassrooms, request)
            for classroom in page.classrooms:
                yield classroom
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def delete_student_data(
        self, student_id: str, *, request_id: str = "", timeout: float | None = None
    ) -> classroom_pb2.DeleteStudentDataResponse:
        """Removes one student from the state; it can't be undone.

        On the disks it is gone once every peer has a snapshot at or after `compact_through_index`
        of the answer; `gaia classrooms forget-student` sees to that too.
        """
        return await self._connection.call(
            lambda peer: peer.classrooms.DeleteStudentData,
            classroom_pb2.DeleteStudentDataRequest(student_id=student_id, request_id=request_id),
            timeout=timeout,
        )
