"""One call, or all pages of a list, through the SDK."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.message import Message

from gaia_grpc.cli.options import parse_cluster, run_async
from gaia_grpc.cli.rpc import require_peer
from gaia_grpc.client.connection import Connection, UnaryMethod, is_read
from gaia_grpc.client.retry import DEFAULT_ATTEMPT_TIMEOUT_S
from gaia_grpc.errors import OutcomeUnknownError, UnavailableError

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

    addresses = parse_cluster(cluster)
    require_peer(addresses)

    async def run() -> Response:
        # What takes long (a member that catches up) may take it in one attempt.
        attempt_s = max(timeout_s / 2, DEFAULT_ATTEMPT_TIMEOUT_S)
        connection = Connection(addresses, timeout=timeout_s, attempt_timeout=attempt_s)
        try:
            return await _call(connection, method, request)
        finally:
            await connection.close()

    return run_async(run())


async def _call(
    connection: Connection, method: UnaryMethod[Request, Response], request: Request
) -> Response:
    """The call, with an error for people where too few peers are there to answer it."""
    try:
        return await connection.call(method, request)
    except UnavailableError as error:
        outcome = "" if is_read(request) else "nothing was changed; "
        raise UnavailableError(
            f"no leader with a majority of the peers answered within {connection.timeout:g} s; "
            f"{outcome}`gaia status` shows the peers"
        ) from error
    except OutcomeUnknownError as error:
        raise OutcomeUnknownError(
            f"no answer within {connection.timeout:g} s: the change may have been made or not; "
            "`gaia status` shows the peers"
        ) from error


def ask_all(
    cluster: str,
    method: UnaryMethod[Request, Response],
    request: Request,
    field: str,
    limit: int,
) -> Response:
    """All pages of a list, as one response with at most `limit` items in `field`."""

    addresses = parse_cluster(cluster)
    require_peer(addresses)

    async def run() -> Response:
        connection = Connection(addresses, timeout=DEFAULT_TIMEOUT_S)
        whole: Any = None
        page_request: Any = request
        try:
            while True:
                have = len(getattr(whole, field)) if whole is not None else 0
                page_request.page_size = min(PAGE_SIZE, limit - have)
                page: Any = await _call(connection, method, page_request)
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
