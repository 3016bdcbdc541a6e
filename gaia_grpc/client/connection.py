"""The one place that performs calls: deadlines, leader redirect, retries, error translation.

A call has a total budget (`timeout`, 30 s, at most 5 minutes) and each attempt a deadline of its
own (5 s). The SDK assigns a `request_id` to every mutation that has none and keeps it over all
attempts, so a repeated attempt returns the first outcome instead of doing the work again. Where the
budget ends after an attempt that may have been applied, `OutcomeUnknownError` says so.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Iterable
from typing import TypeVar

import grpc
from gaia.cluster.v1 import cluster_pb2
from google.protobuf.message import Message

from gaia_grpc.client.channels import Peer, PeerSet
from gaia_grpc.client.retry import (
    DEFAULT_ATTEMPT_TIMEOUT_S,
    DEFAULT_TIMEOUT_S,
    MAX_TIMEOUT_S,
    Attempts,
    Next,
)
from gaia_grpc.client.rpc_errors import leader_hint, to_gaia_error
from gaia_grpc.client.silence import SilenceWatch
from gaia_grpc.errors import ConfigError, GaiaError, OutcomeUnknownError, UnavailableError

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
UnaryMethod = Callable[[Peer], grpc.aio.UnaryUnaryMultiCallable[Request, Response]]

CLIENT_KEY = "gaia-client"
REQUEST_ID = "request_id"
MIN_ATTEMPT_S = 0.005
MIN_RETRY_S = 0.25
"""A call is not repeated with less than this left: a peer keeps 100 ms back for its answer, so the
attempt would only turn "definitely not applied" into an unknown outcome."""
READ_PREFIXES = ("Get", "List", "Score", "Explain")


def parse_targets(targets: str | Iterable[str]) -> tuple[str, ...]:
    """Addresses out of "host:port,host:port" or a list of them; `ConfigError` where one is bad."""
    parts = targets.split(",") if isinstance(targets, str) else list(targets)
    addresses = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not addresses:
        raise ConfigError("no peer address was given")
    for address in addresses:
        host, colon, port = address.rpartition(":")
        whole = not set(host) & set(" ;/") and (":" not in host or host.startswith("["))
        if not (host and whole and colon and port.isdigit() and 0 < int(port) < 65536):
            raise ConfigError(f"not an address of the form host:port: {address}")
    return addresses


class Connection:
    """Channels to all peers and the call that everything else goes through."""

    def __init__(
        self,
        targets: str | Iterable[str],
        *,
        client_id: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        attempt_timeout: float = DEFAULT_ATTEMPT_TIMEOUT_S,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Makes no I/O; channels connect on first use. Times are in seconds."""
        self.client_id = client_id or f"client-{uuid.uuid4().hex}"
        self.timeout = timeout
        self.attempt_timeout = attempt_timeout
        self.draw = draw
        self.seeds = parse_targets(targets)
        self.metadata = ((CLIENT_KEY, self.client_id),)
        self._peers: PeerSet | None = None
        self._closed = False

    @property
    def peers(self) -> PeerSet:
        """The known peers. Channels are made here, since they bind to the running loop."""
        if self._closed:
            raise UnavailableError("the client is closed")
        if self._peers is None:
            self._peers = PeerSet(self.seeds)
        return self._peers

    async def discover(self, timeout: float) -> cluster_pb2.GetStatusResponse:
        """Asks all seeds at once who is there; the first answer counts.

        Raises:
            UnavailableError: none of them answered within `timeout` seconds.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        failures: dict[str, str] = {}
        while (left := deadline - loop.time()) > 0:
            status = await self._first_status(left, failures)
            if status is not None:
                self._learn(status)
                return status
            await asyncio.sleep(min(0.1, max(deadline - loop.time(), 0)))
        seen = "; ".join(f"{address}: {text}" for address, text in sorted(failures.items()))
        raise UnavailableError(f"no peer answered within {timeout:g} s ({seen})")

    async def _first_status(
        self, timeout: float, failures: dict[str, str]
    ) -> cluster_pb2.GetStatusResponse | None:
        """The first answer of any seed; None where all of them failed."""
        asks = [
            asyncio.create_task(self._ask_status(self.peers.get(seed), timeout, failures))
            for seed in self.seeds
        ]
        try:
            for answer in asyncio.as_completed(asks):
                status = await answer
                if status is not None:
                    return status
            return None
        finally:
            for ask in asks:
                ask.cancel()
            await asyncio.wait(asks)

    async def _ask_status(
        self, peer: Peer, timeout: float, failures: dict[str, str]
    ) -> cluster_pb2.GetStatusResponse | None:
        try:
            return await peer.cluster.GetStatus(
                cluster_pb2.GetStatusRequest(),
                timeout=min(timeout, self.attempt_timeout),
                metadata=self.metadata,
            )
        except grpc.aio.AioRpcError as error:
            failures[peer.address] = to_gaia_error(error).message
            return None

    def _learn(self, status: cluster_pb2.GetStatusResponse) -> None:
        now = asyncio.get_running_loop().time()
        for member in status.peers:
            if member.client_address:
                self.peers.get(member.client_address)
        if status.leader_address:
            self.peers.follow(status.leader_address, now)

    async def call(
        self,
        method: UnaryMethod[Request, Response],
        request: Request,
        *,
        timeout: float | None = None,
        attempt_timeout: float | None = None,
        before_attempt: Callable[[Request], None] | None = None,
    ) -> Response:
        """Performs one unary call on whichever peer can answer it.

        Args:
            method: picks the stub's method, as in `lambda peer: peer.tasks.GetTask`.
            request: the message; a missing `request_id` is set in it.
            timeout: total budget in seconds; at most 300.
            attempt_timeout: deadline of each attempt in seconds.
            before_attempt: changes the request before each attempt (fresh stamps).

        Raises:
            DomainError: the request was understood and refused.
            UnavailableError, OverloadedError: not applied.
            OutcomeUnknownError: may be applied; repeat it with the same request_id.
        """
        total = min(self.timeout if timeout is None else timeout, MAX_TIMEOUT_S)
        each = self.attempt_timeout if attempt_timeout is None else attempt_timeout
        given_up: list[grpc.aio.Call] = []
        try:
            return await self._perform(method, request, total, each, before_attempt, given_up)
        finally:
            for attempt in given_up:
                attempt.cancel()

    async def _perform(
        self,
        method: UnaryMethod[Request, Response],
        request: Request,
        total: float,
        each: float,
        before_attempt: Callable[[Request], None] | None,
        given_up: list[grpc.aio.Call],
    ) -> Response:
        """One attempt after the other; those to silent peers are added to `given_up`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + total
        request_id = assign_request_id(request)
        attempts = Attempts(self.draw)
        while True:
            peer = self.peers.preferred
            if before_attempt is not None:
                before_attempt(request)
            left = max(deadline - loop.time(), MIN_ATTEMPT_S)
            hint = ""
            failure: GaiaError
            cause: Exception
            try:
                rpc = method(peer)(request, timeout=min(each, left), metadata=self.metadata)
                response = await self._answer(peer, rpc, given_up)
                self._follow(leader_hint(await rpc.trailing_metadata()))
                return response
            except grpc.aio.AioRpcError as error:
                failure, cause = to_gaia_error(error), error
                hint = leader_hint(error.trailing_metadata())
            except OutcomeUnknownError as silent:
                failure = cause = silent
            step = attempts.after(failure)
            if step is Next.RAISE:
                raise failure from cause
            pause = self._turn(peer, step, attempts, hint)
            if loop.time() + pause + min(MIN_RETRY_S, total / 4) >= deadline:
                raise attempts.final_error(
                    read=is_read(request), timeout_s=total, request_id=request_id
                ) from cause
            await asyncio.sleep(pause)

    async def _answer(
        self,
        peer: Peer,
        rpc: grpc.aio.UnaryUnaryCall[Request, Response],
        given_up: list[grpc.aio.Call],
    ) -> Response:
        """The peer's answer; `OutcomeUnknownError` where it has fallen silent."""
        try:
            async with SilenceWatch(self.peers, peer, rpc) as watch:
                if await watch.answered():
                    return await rpc
        except asyncio.CancelledError:
            rpc.cancel()
            raise
        given_up.append(rpc)
        raise OutcomeUnknownError(f"{peer.address} does not answer any more")

    def _turn(self, peer: Peer, step: Next, attempts: Attempts, hint: str) -> float:
        """Chooses the peer of the next attempt; returns the pause before it in seconds."""
        now = asyncio.get_running_loop().time()
        fresh = False
        if step in (Next.OTHER_PEER, Next.SILENT_PEER):
            fresh = self.peers.pass_over(peer, now, silent=step is Next.SILENT_PEER)
        elif step is Next.REDIRECT and not hint:
            self.peers.pass_over(peer, now, silent=False)
        if hint and hint != peer.address:
            self.peers.follow(hint, now)
        return attempts.pause_s(step, fresh_peer=fresh)

    def _follow(self, hint: str) -> None:
        if hint and hint != self.peers.preferred.address:
            self.peers.follow(hint, asyncio.get_running_loop().time())

    async def close(self) -> None:
        """Closes all channels; idempotent."""
        if not self._closed and self._peers is not None:
            await self._peers.close()
        self._closed = True


def assign_request_id(request: Message) -> str:
    """Sets a fresh `request_id` where the message has that field and it is empty; returns it."""
    if REQUEST_ID not in request.DESCRIPTOR.fields_by_name:
        return ""
    current: str = getattr(request, REQUEST_ID)
    if not current:
        current = uuid.uuid4().hex
        setattr(request, REQUEST_ID, current)
    return current


def is_read(request: Message) -> bool:
    """True of requests that change nothing."""
    return request.DESCRIPTOR.name.startswith(READ_PREFIXES)
