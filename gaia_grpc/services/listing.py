"""Reads pages of lists in pieces, since a read of the state can't be interrupted.

A page may hold 1,000 records, and some are sums over a window: at once they would keep the loop,
and with it the heartbeats of consensus, for tens of milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from gaia.command.v1 import query_pb2
from gaia.common.v1 import common_pb2

from gaia_grpc.services.deadlines import Context
from gaia_grpc.services.ingress import Ingress

RECORDS_PER_READ: Mapping[str, tuple[str, int]] = {
    "list_sessions": ("sessions", 100),
    "list_tasks": ("tasks", 100),
    "list_task_policies": ("policies", 100),
    "list_alerts": ("alerts", 100),
    "list_interventions": ("interventions", 100),
    "list_locks": ("locks", 100),
    "list_classrooms": ("classrooms", 20),
    # Quantiles are computed when they are asked for.
    "list_aggregates": ("aggregates", 20),
    # Packed records are unpacked then, and what is not packed yet is summed up.
    "get_history": ("windows", 20),
    "list_detector_inputs": ("windows", 20),
}
"""Body of the query -> the field that holds the records, and how many are read at once."""


async def read_page(ingress: Ingress, context: Context, query: query_pb2.Query) -> Any:
    """The response that a list query asks for; its first piece is as fresh as asked.

    Later pieces are this peer's own state, which is no older. A piece that is short and names a
    next one ends the page: the state has looked far enough.
    """
    name = query.WhichOneof("body") or ""
    field, most_per_read = RECORDS_PER_READ[name]
    request: Any = getattr(query, name)
    left = ingress.page_size(request.page_size)
    consistency = request.consistency
    response: Any = None
    while True:
        request.page_size = min(left, most_per_read)
        piece = getattr(await ingress.query(context, query, consistency), name)
        records = getattr(piece, field)
        left -= len(records)
        if response is None:
            response = piece
        else:
            getattr(response, field).extend(records)
            response.next_page_token = piece.next_page_token
        if left <= 0 or len(records) < request.page_size or not piece.next_page_token:
            return response
        request.page_token = piece.next_page_token
        consistency = common_pb2.CONSISTENCY_LOCAL
        await asyncio.sleep(0)
