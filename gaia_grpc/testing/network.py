"""The ways between the peers of a cluster, and from clients to peers, each through a proxy.

    with Network() as network:
        address = network.link("n1", "n2", peer_address)      n1 is told this address of n2
        network.cut("n1", "n2")                               what n1 says does not reach n2
        network.heal()

A connection carries bytes both ways whoever opened it. So the way from n1 to n2 has two flows: the
forward one of the connections that n1 opens, and the backward one of those that n2 opens.

The proxies run on a thread with a loop of its own: a test that blocks does not stop the network.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from gaia_grpc.errors import ConfigError
from gaia_grpc.testing.process import free_ports
from gaia_grpc.testing.proxy import Flow, Proxy

CALL_TIMEOUT_S = 10.0
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one way, and connections of the link, since the start."""

    passed_bytes: int
    held_bytes: int
    discarded_bytes: int
    connections: int


class Network:
    """Links by (source, target); any name may be a source, also one for all clients."""

    def __init__(self) -> None:
        self._links: dict[tuple[str, str], Proxy] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gaia-test-network")
        self._thread.start()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Breaks everything and ends the thread; idempotent."""
        if self._closed:
            return
        self._closed = True
        for proxy in self._links.values():
            self._run(proxy.close())
        self._run(asyncio.sleep(0.05))  # what was broken is closed some turns of the loop later
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT_S)
        self._loop.close()

    # --- links -----------------------------------------------------------------------------------

    def link(self, source: str, target: str, address: str) -> str:
        """The address at which `source` reaches `target`, which listens on `address`."""
        known = self._links.get((source, target))
        if known is not None and known.target == address:
            return known.address

        async def make() -> Proxy:
            proxy = Proxy(address, free_ports(1)[0])
            await proxy.listen()
            return proxy

        proxy = self._run(make())
        self._links[(source, target)] = proxy
        return proxy.address

    def traffic(self, source: str, target: str) -> Traffic:
        """What went from `source` to `target`, whoever of them opened the connections."""
        flows = self._flows(source, target)

        async def count() -> Traffic:
            return Traffic(
                sum(flow.passed_bytes for flow in flows),
                sum(flow.held_bytes for flow in flows),
                sum(flow.discarded_bytes for flow in flows),
                sum(proxy.connections for proxy in self._between(source, target)),
            )

        return self._run(count())

    # --- faults ----------------------------------------------------------------------------------

    def cut(self, source: str, target: str, *, both_ways: bool = False) -> None:
        """What `source` says does not reach `target` (nor the other way round)."""
        self._each(source, target, Flow.cut)
        if both_ways:
            self._each(target, source, Flow.cut)

    def isolate(self, name: str, others: Iterable[str]) -> None:
        """Cuts `name` off from all `others`, both ways."""
        for other in others:
            if other != name:
                self.cut(name, other, both_ways=True)

    def delay(self, source: str, target: str, seconds: float) -> None:
        """What `source` says reaches `target` that much later."""

        def slow(flow: Flow) -> None:
            flow.delay_s = seconds

        self._each(source, target, slow)

    def lose(self, source: str, target: str) -> None:
        """What `source` says is thrown away; break the connections before healing (`reset`)."""

        def discard(flow: Flow) -> None:
            flow.discarding = True

        self._each(source, target, discard)

    def reset(self, source: str, target: str) -> None:
        """Breaks all connections between the two; they may connect again at once."""
        for proxy in self._between(source, target):
            self._run(proxy.reset())

    def refuse(self, target: str) -> None:
        """New connections to `target` are refused, as where its process has ended."""
        for (_, known), proxy in self._links.items():
            if known == target:
                self._run(proxy.refuse())

    def accept(self, target: str) -> None:
        """New connections to `target` are accepted again."""
        for (_, known), proxy in self._links.items():
            if known == target:
                self._run(proxy.listen())

    def heal(self, source: str | None = None, target: str | None = None) -> None:
        """Ends cuts, delays and losses: of one way, or of all."""
        if source is not None and target is not None:
            self._each(source, target, Flow.heal)
            return
        for proxy in self._links.values():
            for flow in (proxy.forward, proxy.backward):
                self._apply([flow], Flow.heal)

    # --- inside ----------------------------------------------------------------------------------

    def _between(self, source: str, target: str) -> list[Proxy]:
        pairs = ((source, target), (target, source))
        return [self._links[pair] for pair in pairs if pair in self._links]

    def _flows(self, source: str, target: str) -> list[Flow]:
        flows = []
        if (source, target) in self._links:
            flows.append(self._links[(source, target)].forward)
        if (target, source) in self._links:
            flows.append(self._links[(target, source)].backward)
        if not flows:
            raise ConfigError(f"there is no link between {source} and {target}")
        return flows

    def _each(self, source: str, target: str, change: Callable[[Flow], None]) -> None:
        self._apply(self._flows(source, target), change)

    def _apply(self, flows: Iterable[Flow], change: Callable[[Flow], None]) -> None:
        async def run() -> None:
            for flow in flows:
                change(flow)

        self._run(run())

    def _run(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(CALL_TIMEOUT_S)
