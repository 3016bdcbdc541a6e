"""Lets go of a state that another one has replaced, without holding the loop up.

Its tables refer to each other, so only a full collection would free it, and that looks through the
new state as well: some tenths of a second at 100,000 tasks. To free so many records takes as long,
even without a collection. So its large containers are emptied in slices of time, and then what
refers to each other is cut apart, which leaves nothing for the collector.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from enum import Enum
from types import MethodType

from gaia_grpc.state.machine import StateMachine

SLICE_NS = 1_000_000
_LARGE = 64
_STEP = 5
_PACKAGE = "gaia_grpc.state"

Container = dict[object, object] | list[object] | set[object] | deque[object]


def discard(machine: StateMachine) -> Iterator[None]:
    """Takes a state apart that nobody uses any more; yields after each slice of time."""
    shared, _ = _structure(_shared_roots(), sys.maxsize)
    parts, large = _structure([machine], _LARGE)
    until_ns = time.perf_counter_ns() + SLICE_NS
    for container in large:
        while container and id(container) not in shared:
            _drop_some(container)
            if time.perf_counter_ns() >= until_ns:
                yield
                until_ns = time.perf_counter_ns() + SLICE_NS
    for key, part in parts.items():
        if key not in shared and not isinstance(part, Enum) and _is_ours(part):
            _strip(part)


def _structure(roots: Iterable[object], limit: int) -> tuple[dict[int, object], list[Container]]:
    """What hangs together, by `id`, and in it the containers above `limit`, not what they hold."""
    seen: dict[int, object] = {}
    large: list[Container] = []
    waiting = list(roots)
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, type):
            continue
        if isinstance(each, MethodType):
            seen[id(each)] = each
            waiting.append(each.__self__)
        elif isinstance(each, dict | list | set | deque | tuple):
            seen[id(each)] = each
            if len(each) <= limit:
                waiting.extend(each.values() if isinstance(each, dict) else each)
            elif not isinstance(each, tuple):
                large.append(each)
        elif _is_ours(each):
            seen[id(each)] = each
            waiting.extend(_attributes(each).values())
    return seen, large


def _shared_roots() -> Iterator[object]:
    """What modules and classes hold belongs to every state."""
    for name, module in sorted(sys.modules.items()):
        if name.startswith(_PACKAGE):
            for value in list(vars(module).values()):
                yield value
                if isinstance(value, type):
                    yield from vars(value).values()


def _is_ours(each: object) -> bool:
    return type(each).__module__.startswith(_PACKAGE)


def _attributes(each: object) -> dict[str, object]:
    found: dict[str, object] = dict(getattr(each, "__dict__", {}))
    for kind in type(each).__mro__:
        slots = getattr(kind, "__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(each, name):
                found[name] = getattr(each, name)
    return found


def _drop_some(container: Container) -> None:
    for _ in range(min(_STEP, len(container))):
        if isinstance(container, dict):
            container.popitem()
        else:
            container.pop()


def _strip(part: object) -> None:
    for name in _attributes(part):
        try:
            delattr(part, name)
        except AttributeError:
            return  # frozen: it refers to nothing that refers to it
