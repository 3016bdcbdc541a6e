"""The cluster client: one object with everything, safe to share between tasks of one loop."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import Any, Self

from gaia_grpc.client.alerts import AlertsApi
from gaia_grpc.client.channels import Peer
from gaia_grpc.client.classrooms import ClassroomsApi
from gaia_grpc.client.clock import Clock
from gaia_grpc.client.connection import Connection, Request, Response, UnaryMethod
from gaia_grpc.client.locks import LocksApi
from gaia_grpc.client.metrics import MetricsApi
from gaia_grpc.client.resources import ClusterApi, SessionsApi
from gaia_grpc.client.retry import DEFAULT_ATTEMPT_TIMEOUT_S, DEFAULT_TIMEOUT_S
from gaia_grpc.client.tasks import TasksApi
from gaia_grpc.errors import GaiaError

CONNECT_TIMEOUT_S = 10.0


class Client:
    """A client of one cluster. Make it by `Client.connect`."""

    def __init__(
        self, connection: Connection, *, connect_timeout: float, clock: Clock | None
    ) -> None:
        """Use `Client.connect`."""
        self.connection = connection
        self._connect_timeout = connect_timeout
        self.sessions = SessionsApi(connection)
        self.tasks = TasksApi(connection)
        self.locks = LocksApi(connection)
        self.metrics = MetricsApi(connection, clock)
        self.alerts = AlertsApi(connection)
        self.classrooms = ClassroomsApi(connection)
        self.cluster = ClusterApi(connection)

    @classmethod
    def connect(
        cls,
        targets: str | Iterable[str],
        *,
        client_id: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        attempt_timeout: float = DEFAULT_ATTEMPT_TIMEOUT_S,
        connect_timeout: float = CONNECT_TIMEOUT_S,
        clock: Clock | None = None,
    ) -> Client:
        """A client that is connected by `async with` or `await`.

            async with Client.connect("127.0.0.1:50051,127.0.0.1:50052") as client:
                await client.tasks.enqueue("grade", b"essay 7")

        Args:
            targets: client addresses of some peers; one that answers is enough, the others are
                learned from it.
            client_id: scope of the request ids; fresh by default.
            timeout: default budget of a call in seconds, over all its attempts.
            attempt_timeout: default deadline of one attempt in seconds.
            connect_timeout: seconds for the first answer; 0 does not ask, for an app that starts
                while no peer may be there, and the peers are found by its calls.
            clock: milliseconds; stamps metrics. By default the wall clock as it was at the start,
                moved on by a clock that nobody sets.

        Raises:
            ConfigError: an address is malformed.
            UnavailableError: when it is entered, if no peer answers.
        """
        connection = Connection(
            targets, client_id=client_id, timeout=timeout, attempt_timeout=attempt_timeout
        )
        return cls(connection, connect_timeout=connect_timeout, clock=clock)

    async def open(self) -> Self:
        """Finds the peers; raises `UnavailableError` where none answers in time."""
        if not self._connect_timeout:
            return self
        try:
            await self.connection.discover(self._connect_timeout)
        except GaiaError:
            await self.connection.close()
            raise
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self.open().__await__()

    @property
    def client_id(self) -> str:
        """Scope of the request ids, sent as `gaia-client`."""
        return self.connection.client_id

    @property
    def addresses(self) -> tuple[str, ...]:
        """Client addresses of all known peers."""
        return self.connection.peers.addresses

    def peer(self, address: str | None = None) -> Peer:
        """The raw stubs on the channel of one peer; by default the one that calls go to."""
        peers = self.connection.peers
        return peers.preferred if address is None else peers.get(address)

    async def call(
        self,
        method: UnaryMethod[Request, Response],
        request: Request,
        *,
        timeout: float | None = None,
        attempt_timeout: float | None = None,
        before_attempt: Callable[[Request], None] | None = None,
    ) -> Response:
        """Any unary RPC with the SDK's redirects and retries; see `Connection.call`."""
        return await self.connection.call(
            method,
            request,
            timeout=timeout,
            attempt_timeout=attempt_timeout,
            before_attempt=before_attempt,
        )

    async def close(self) -> None:
        """Flushes metrics buffers and closes the channels; idempotent."""
        try:
            await self.metrics.close()
        finally:
            await self.connection.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.close()
        except GaiaError:
            # The error that ended the block matters more than metrics that it left behind.
            if error is None:
                raise
