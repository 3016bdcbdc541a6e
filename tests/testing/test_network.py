"""Proxies between peers and clients: each fault does what its name says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest

from gaia_grpc.errors import ConfigError
from gaia_grpc.testing.network import Network


class Echo:
    """Answers each line with the same line."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.address = ""
        self.serving: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.ensure_future(self.serve(reader, writer)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while line := await reader.readline():
                self.lines.append(line)
                writer.write(line)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.accept, "127.0.0.1", 0)
    echo.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield echo
    server.close()
    if echo.serving:
        await asyncio.wait(echo.serving, timeout=5)


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


class Line:
    """A connection to an echo through a proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, address: str) -> Line:
        host, _, port = address.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def say(self, text: bytes) -> None:
        self.writer.write(text + b"\n")
        await self.writer.drain()

    async def hear(self, timeout: float = 5.0) -> bytes | None:
        try:
            async with asyncio.timeout(timeout):
                return await self.reader.readline()
        except TimeoutError:
            return None

    async def close(self) -> None:
        self.writer.close()
        await asyncio.wait([asyncio.ensure_future(self.writer.wait_closed())])


@pytest.fixture
async def line(echo: Echo, network: Network) -> AsyncIterator[Line]:
    line = await Line.open(network.link("a", "b", echo.address))
    await line.say(b"hello")
    assert await line.hear() == b"hello\n"
    yield line
    await line.close()


async def test_a_cut_holds_one_way_and_healing_delivers_it(
    echo: Echo, network: Network, line: Line
) -> None:
    network.cut("a", "b")
    await line.say(b"late")
    assert await line.hear(0.2) is None
    assert echo.lines == [b"hello\n"]
    assert network.traffic("a", "b").held_bytes == 5
    network.heal("a", "b")
    assert await line.hear() == b"late\n"


async def test_a_cut_of_the_other_way_lets_requests_through(
    echo: Echo, network: Network, line: Line
) -> None:
    network.cut("b", "a")
    await line.say(b"heard")
    assert await line.hear(0.2) is None
    assert echo.lines == [b"hello\n", b"heard\n"]
    assert network.traffic("b", "a").held_bytes == 6
    network.heal()
    assert await line.hear() == b"heard\n"


async def test_an_isolated_peer_is_cut_off_both_ways(
    echo: Echo, network: Network, line: Line
) -> None:
    network.link("c", "a", echo.address)
    network.isolate("a", ["a", "b", "c"])
    await line.say(b"nobody hears this")
    assert await line.hear(0.2) is None
    assert len(echo.lines) == 1


async def test_lost_replies_never_arrive(echo: Echo, network: Network, line: Line) -> None:
    network.lose("b", "a")
    await line.say(b"done, but you will not know")
    assert await line.hear(0.2) is None
    assert len(echo.lines) == 2
    assert network.traffic("b", "a").discarded_bytes > 0
    network.reset("a", "b")
    network.heal("b", "a")
    assert await line.hear() == b""


async def test_a_delay_delays_and_keeps_the_order(network: Network, line: Line) -> None:
    network.delay("a", "b", 0.3)
    began = asyncio.get_running_loop().time()
    await line.say(b"1")
    await line.say(b"2")
    assert [await line.hear(), await line.hear()] == [b"1\n", b"2\n"]
    assert asyncio.get_running_loop().time() - began >= 0.29


async def test_connections_are_refused_and_accepted_again_at_the_same_address(
    echo: Echo, network: Network, line: Line
) -> None:
    address = network.link("a", "b", echo.address)
    network.refuse("b")
    with pytest.raises(ConnectionRefusedError):
        await Line.open(address)
    network.accept("b")
    again = await Line.open(address)
    await again.say(b"again")
    assert await again.hear() == b"again\n"
    assert network.traffic("a", "b").connections == 2
    await again.close()


async def test_who_connects_to_nobody_is_told(network: Network) -> None:
    address = network.link("a", "gone", "127.0.0.1:1")
    line = await Line.open(address)
    with pytest.raises((ConnectionError, AssertionError)):
        assert await line.hear() != b""
    await line.close()


def test_a_link_that_does_not_exist_is_an_error(network: Network) -> None:
    with pytest.raises(ConfigError):
        network.cut("a", "z")
