"""Wakes those who wait for a change of the state, and only those whose topic was touched."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable

MAX_TOPICS = 50_000


class TopicBoard:
    """Versions of topics, and the callers that wait for them.

    A topic that was never touched, or was forgotten to bound the memory, has the version
    `_floor`, which is at least the version of every forgotten topic: forgetting may wake somebody
    for nothing, and never lets a change go unnoticed.
    """

    def __init__(self, max_topics: int = MAX_TOPICS) -> None:
        self._max_topics = max_topics
        self._versions: OrderedDict[str, int] = OrderedDict()
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._touches = 0
        self._floor = 0

    def version(self, topic: str) -> int:
        """The version of the topic now."""
        return self._versions.get(topic, self._floor)

    def touch(self, topics: Iterable[str]) -> None:
        """Gives each topic a new version and wakes who waits for it."""
        for topic in topics:
            self._touches += 1
            self._versions[topic] = self._touches
            self._versions.move_to_end(topic)
            for waiter in self._waiters.pop(topic, ()):
                if not waiter.done():
                    waiter.set_result(None)
        while len(self._versions) > self._max_topics:
            _, version = self._versions.popitem(last=False)
            self._floor = max(self._floor, version)

    def touch_all(self) -> None:
        """Every topic may have changed: wakes all who wait (a snapshot replaced the state)."""
        self._touches += 1
        self._floor = self._touches
        self._versions.clear()
        waiters, self._waiters = self._waiters, {}
        for waiting in waiters.values():
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)

    async def wait(self, topic: str, version: int, timeout_s: float) -> int:
        """Returns the version once it differs from `version`, or after the timeout."""
        if self.version(topic) != version or timeout_s <= 0:
            return self.version(topic)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(topic, set())
        waiters.add(waiter)
        try:
            await asyncio.wait((waiter,), timeout=timeout_s)
        finally:
            waiters.discard(waiter)
            if not waiters and self._waiters.get(topic) is waiters:
                del self._waiters[topic]
        return self.version(topic)

    @property
    def waiting(self) -> int:
        """How many callers wait now."""
        return sum(len(waiters) for waiters in self._waiters.values())
