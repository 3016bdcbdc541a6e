"""One TCP proxy whose two directions can be held up, delayed or thrown away.

A network that is cut loses packets, not bytes: TCP sends them again until the cut is healed. So a
cut flow keeps what it has read and delivers it afterwards, in order, which is also how very old
messages reach a peer. What must never arrive is discarded, and the connection with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

CHUNK_BYTES = 65_536
MAX_CHUNKS = 64
"""Read ahead while a flow is cut; then the sender's own buffers fill up."""
CONNECT_TIMEOUT_S = 5.0


@dataclass(slots=True)
class Flow:
    """One direction of one proxy, over all of its connections. Used on the proxy's loop only."""

    delay_s: float = 0.0
    discarding: bool = False
    passed_bytes: int = 0
    held_bytes: int = 0
    """Bytes that arrived while the flow was cut."""
    discarded_bytes: int = 0
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._open.set()

    @property
    def is_cut(self) -> bool:
        """Whether bytes are held up now."""
        return not self._open.is_set()

    def cut(self) -> None:
        """Holds up every byte from now on."""
        self._open.clear()

    def heal(self) -> None:
        """Delivers what was held up; no delay, no discarding any more."""
        self.delay_s = 0.0
        self.discarding = False
        self._open.set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Moves bytes until the reader's end has been passed on."""
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MAX_CHUNKS)

        async def read() -> None:
            data = b"-"
            while data:
                try:
                    data = await reader.read(CHUNK_BYTES)
                except OSError:
                    data = b""
                if self.is_cut:
                    self.held_bytes += len(data)
                await chunks.put((loop.time() + self.delay_s, data))

        reading = asyncio.create_task(read())
        try:
            while True:
                due_s, data = await chunks.get()
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                await self._open.wait()
                if not data:
                    break
                if self.discarding:
                    self.discarded_bytes += len(data)
                    continue
                writer.write(data)
                await writer.drain()
                self.passed_bytes += len(data)
        except OSError:
            pass  # the other side is gone; its own flow tells this side
        finally:
            reading.cancel()
            await asyncio.wait([reading])
            with suppress(OSError, RuntimeError):
                writer.write_eof()


class Proxy:
    """Listens on a port of its own and passes every connection on to `target` (host:port)."""

    def __init__(self, target: str, port: int = 0) -> None:
        """`port` 0 takes any; one that must outlive `refuse` is best chosen (`free_ports`)."""
        self.target = target
        self.forward = Flow()
        """From who connects to the target."""
        self.backward = Flow()
        """From the target to who connects."""
        self.connections = 0
        """Accepted so far."""
        self._port = port
        self._closed = False
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        """Where to connect; stays the same over `refuse` and `listen`."""
        return f"127.0.0.1:{self._port}"

    async def listen(self) -> None:
        """Accepts connections; nothing where it does already."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Refuses connections, as the host of a process that has ended does."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def reset(self) -> None:
        """Breaks every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def close(self) -> None:
        """Refuses and breaks everything; idempotent."""
        self._closed = True
        await self.refuse()
        await self.reset()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A task that was cancelled before its first step has closed nothing.
        await self.reset()
        self._writers.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closed:  # it was being accepted while everything ended
            writer.transport.abort()
            return
        self.connections += 1
        self._writers.add(writer)
        self._spawn(self._serve(reader, writer))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        outward: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                inward, outward = await asyncio.open_connection(host, int(port))
            self._writers.add(outward)
            async with asyncio.TaskGroup() as group:
                group.create_task(self.forward.carry(reader, outward))
                group.create_task(self.backward.carry(inward, writer))
        except (OSError, TimeoutError):
            pass  # nobody listens at the target: who connected is told by the end of it
        finally:
            for side in (writer, outward):
                if side is not None:
                    side.transport.abort()
                    self._writers.discard(side)
