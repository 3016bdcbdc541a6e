"""Fixtures for all tests, and the settings of `make race`.

pytest-grpc serves servicers from a thread pool; ours are asyncio ones. The two fixtures below take
the place of its own: the same sync stub then talks to our servicer on a loop of its own.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
import hypothesis
import pytest

pytest_plugins = ["gaia_grpc.testing.plugin"]

# A slow machine is no failure: examples have no deadline of their own, tests have theirs.
hypothesis.settings.register_profile("gaia", deadline=None)
hypothesis.settings.load_profile("gaia")

RACE_SEED = os.environ.get("GAIA_RACE_SEED", "")
START_TIMEOUT_S = 10.0


@pytest.fixture(scope="module")
def grpc_interceptors() -> tuple[grpc.aio.ServerInterceptor, ...]:
    """Server interceptors of a module's pytest-grpc server; override it in the module."""
    return ()


@pytest.fixture(scope="module")
def grpc_server(
    grpc_add_to_server: Callable[[Any, grpc.aio.Server], None],
    grpc_servicer: Any,
    grpc_interceptors: tuple[grpc.aio.ServerInterceptor, ...],
) -> Iterator[str]:
    """A grpc.aio server for `grpc_servicer` on a thread with its own loop; yields its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="pytest-grpc", daemon=True)
    thread.start()

    async def start() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(interceptors=grpc_interceptors)
        grpc_add_to_server(grpc_servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(START_TIMEOUT_S)
    yield f"127.0.0.1:{port}"
    asyncio.run_coroutine_threadsafe(server.stop(None), loop).result(START_TIMEOUT_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(START_TIMEOUT_S)
    loop.close()


@pytest.fixture(scope="module")
def grpc_addr(grpc_server: str) -> str:
    """Address of the server; pytest-grpc's own fixture leaks a socket."""
    return grpc_server


# --- make race --------------------------------------------------------------------------------


class ShuffledTasksLoop(asyncio.SelectorEventLoop):
    """Runs the task steps that are ready in a seeded random order.

    Only steps of tasks change places among themselves: the order of plain callbacks is promised by
    asyncio (transports rely on it), the order of tasks is not, and code must not rely on it.
    """

    _ready: Any

    def __init__(self, seed: str) -> None:
        super().__init__()
        self._order = random.Random(seed)

    def _run_once(self) -> None:
        ready = self._ready
        # By position: grpc's threads append (call_soon_threadsafe) while this one looks.
        places = [
            place
            for place in range(len(ready))
            if isinstance(getattr(ready[place]._callback, "__self__", None), asyncio.Task)
        ]
        if len(places) > 1:
            steps = [ready[place] for place in places]
            self._order.shuffle(steps)
            for place, step in zip(places, steps, strict=True):
                ready[place] = step
        super()._run_once()  # type: ignore[misc]  # private in typeshed; there is no public hook


if RACE_SEED:
    sys.setswitchinterval(1e-6)

    def pytest_asyncio_loop_factories(
        config: pytest.Config, item: pytest.Item
    ) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
        """Each test's loop shuffles by the seed and the test's own name."""
        return {"shuffled": lambda: ShuffledTasksLoop(f"{RACE_SEED}:{item.nodeid}")}
