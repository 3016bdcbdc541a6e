"""Keeps full garbage collections short, however large the state is.

Python looks through all objects that it knows in each full collection: 0.4 s of standstill at
400,000 tasks, on every peer at the same time, since all of them apply the same log; that is longer
than an election timeout. Records refer to nothing that refers back, so they are freed without a
collection. So what is left after a collection that took long is kept out of all later ones
(`gc.freeze`), and each record is looked at a few times in its life.

What refers to itself and was kept out too is never freed. That are at most the calls and streams
that were open at the time, and it comes about only where the state has grown by some 100,000
objects since the last time; a peer with a small state goes on as Python does.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

LONG_NS = 15_000_000
_FULL = 2


class ShortCollections:
    """A callback of the collector, from `install` to `remove`."""

    def __init__(self, now_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self.frozen = 0
        """How often something was kept out."""
        self._now_ns = now_ns
        self._started_ns = 0

    def install(self) -> None:
        """For a process that nothing else runs in."""
        gc.callbacks.append(self._on_collection)

    def remove(self) -> None:
        """Later collections are not looked at; what is kept out stays so."""
        gc.callbacks.remove(self._on_collection)

    def _on_collection(self, phase: str, info: Mapping[str, int]) -> None:
        if info["generation"] != _FULL:
            return
        if phase == "start":
            self._started_ns = self._now_ns()
        elif self._now_ns() - self._started_ns >= LONG_NS:
            gc.freeze()
            self.frozen += 1
