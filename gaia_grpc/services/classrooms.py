"""ClassroomService: who belongs to a classroom, and one student's records out of everything."""

from __future__ import annotations

from gaia.classroom.v1 import classroom_pb2, classroom_pb2_grpc
from gaia.command.v1 import command_pb2, query_pb2

from gaia_grpc.services.deadlines import Context
from gaia_grpc.services.ingress import Ingress
from gaia_grpc.services.listing import read_page


class ClassroomService(classroom_pb2_grpc.ClassroomServiceServicer):
    """See `protos/gaia/classroom/v1/classroom.proto`."""

    def __init__(self, ingress: Ingress) -> None:
        self._ingress = ingress

    async def PutClassroom(
        self, request: classroom_pb2.PutClassroomRequest, context: Context
    ) -> classroom_pb2.PutClassroomResponse:
        """Creates or replaces a classroom."""
        self._ingress.check(request)
        body = command_pb2.PutClassroom(
            classroom_id=request.classroom_id,
            name=request.name,
            # The same members in another order are the same request.
            teacher_ids=sorted(set(request.teacher_ids)),
            student_ids=sorted(set(request.student_ids)),
        )
        command = command_pb2.Command(put_classroom=body)
        outcome = await self._ingress.submit(context, command, request.request_id)
        return classroom_pb2.PutClassroomResponse(
            classroom=outcome.result.classroom, term=outcome.term, applied_index=outcome.index
        )

    async def GetClassroom(
        self, request: classroom_pb2.GetClassroomRequest, context: Context
    ) -> classroom_pb2.GetClassroomResponse:
        """Reads one classroom."""
        self._ingress.check(request)
        query = query_pb2.Query(get_classroom=request)
        return (await self._ingress.query(context, query, request.consistency)).get_classroom

    async def ListClassrooms(
        self, request: classroom_pb2.ListClassroomsRequest, context: Context
    ) -> classroom_pb2.ListClassroomsResponse:
        """Reads a page of classrooms."""
        self._ingress.check(request)
        query = query_pb2.Query(list_classrooms=request)
        page: classroom_pb2.ListClassroomsResponse = await read_page(self._ingress, context, query)
        return page

    async def DeleteStudentData(
        self, request: classroom_pb2.DeleteStudentDataRequest, context: Context
    ) -> classroom_pb2.DeleteStudentDataResponse:
        """Removes one student from the state."""
        self._ingress.check(request)
        body = command_pb2.DeleteStudentData(student_id=request.student_id)
        command = command_pb2.Command(delete_student_data=body)
        outcome = await self._ingress.submit(context, command, request.request_id)
        response = outcome.result.deleted
        response.term, response.applied_index = outcome.term, outcome.index
        return response
