"""One call, or all pages of a list, through the SDK."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.message import Message

from gaia_grpc.cli.options import parse_cluster, run_async
from gaia_grpc.client.connection import Connection, UnaryMethod

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

DEFAULT_TIMEOUT_S = 10.0
PAGE_SIZE = 1_000


def ask(
    cluster: str,
    method: UnaryMethod[Request, Response],
    request: Request,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Response:
    """One unary call on whichever peer can answer it. Raises the SDK's errors."""

    async def run() -> Response:
        connection = Connection(parse_cluster(cluster), timeout=timeout_s)
        try:
            return await connection.call(method, request)
        finally:
            await connection.close()

    return run_async(run())


def ask_all(
    cluster: str,
    method: UnaryMethod[Request, Response],
    request: Request,
    field: str,
    limit: int,
) -> Response:
    """All pages of a list, as one response with at most `limit` items in `field`."""

    async def run() -> Response:
        connection = Connection(parse_cluster(cluster), timeout=DEFAULT_TIMEOUT_S)
        whole: Any = None
        page_request: Any = request
        try:
            while True:
                have = len(getattr(whole, field)) if whole is not None else 0
                page_request.page_size = min(PAGE_SIZE, limit - have)
                page: Any = await connection.call(method, page_request)
                token = page.next_page_token
                if whole is None:
                    whole = page
                else:
                    getattr(whole, field).extend(getattr(page, field))
                    whole.next_page_token = token
                if not token or len(getattr(whole, field)) >= limit:
                    response: Response = whole
                    return response
                page_request.page_token = token
        finally:
            await connection.close()

    return run_async(run())
