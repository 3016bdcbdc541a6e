"""The ceiling: a bare grpc.aio echo, without log, disk or other peers.

Run as a program it is the server: it prints its port and serves until its stdin closes.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

METHOD = "/gaia.bench.Echo/Call"
PAYLOAD = b"x" * 100


def _identity(data: bytes) -> bytes:
    return data


async def serve() -> None:
    """Serves until stdin ends."""

    async def echo(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return request

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(
        echo, request_deserializer=_identity, response_serializer=_identity
    )
    service, _, method = METHOD.strip("/").partition("/")
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


@asynccontextmanager
async def echo_server() -> AsyncIterator[str]:
    """Address of an echo server in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gaia_grpc.cli.benchmarks.echo",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        if process.stdout is None:
            raise RuntimeError("the echo server has no output")
        port = int(await process.stdout.readline())
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def measure_echo(seconds: float, in_flight: int) -> tuple[float, list[float]]:
    """Calls a second and the duration of each call in seconds."""
    durations: list[float] = []
    async with echo_server() as address, grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(
            METHOD, request_serializer=_identity, response_deserializer=_identity
        )
        await call(PAYLOAD)
        until_s = time.perf_counter() + seconds

        async def caller() -> None:
            while time.perf_counter() < until_s:
                begin_s = time.perf_counter()
                await call(PAYLOAD)
                durations.append(time.perf_counter() - begin_s)

        begin_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(caller())
        return len(durations) / (time.perf_counter() - begin_s), durations


if __name__ == "__main__":
    from gaia_grpc.cli.options import run_async

    run_async(serve())
