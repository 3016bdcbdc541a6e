"""What calls of the blocking SDK return: buffers, listeners, watches and locks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from gaia.alert.v1 import alert_pb2
from gaia.lock.v1 import lock_pb2
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.client.alerts import AlertListener
from gaia_grpc.client.buffer import MetricsBuffer
from gaia_grpc.client.counters import MetricsCounters
from gaia_grpc.client.locks import HeldLock
from gaia_grpc.client.portal import Facade, Items, Portal, blocking, direct, plain, wrapped
from gaia_grpc.client.watches import StateWatch
from gaia_grpc.errors import GaiaError

P = ParamSpec("P")
Inner = TypeVar("Inner")
Change = TypeVar("Change", bound="task_pb2.WatchTasksResponse | session_pb2.WatchSessionsResponse")


class Closing(Facade[Inner], Generic[Inner]):
    """A facade that `with` closes."""

    def close(self) -> None:
        """Ends it; idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class BlockingBuffer(Closing[MetricsBuffer]):
    """See `MetricsBuffer`. `record` does not wait for the loop: any thread may call it freely."""

    record = direct(MetricsBuffer.record)
    tick = direct(MetricsBuffer.tick)
    seal = direct(MetricsBuffer.seal)
    now_ms = direct(MetricsBuffer.now_ms)
    flush = blocking(MetricsBuffer.flush)

    @property
    def counters(self) -> MetricsCounters:
        """The counts of this moment; a copy, which adds up."""
        return self._inner.counters

    @property
    def buffered(self) -> int:
        """Metrics that are not in a sealed batch yet."""
        return self._inner.buffered

    @property
    def last_refusal(self) -> str:
        """Reason of the latest batch or metric that the cluster refused."""
        return self._inner.last_refusal

    def close(self, timeout: float | None = None) -> None:
        """As `MetricsBuffer.close`."""
        self._portal.run(self._inner.close(timeout))


class BlockingListener(Closing[AlertListener]):
    """See `AlertListener`; entering it waits for the first answer."""

    open = blocking(AlertListener.open)
    next = blocking(AlertListener.next)
    close = blocking(AlertListener.close)

    @property
    def cursor(self) -> int | None:
        """All matching events up to this sequence were handed out; None before the first answer."""
        return self._inner.cursor

    @property
    def cluster_id(self) -> str:
        """The cluster that the cursor belongs to; empty before the first answer."""
        return self._inner.cluster_id

    @property
    def reconnects(self) -> int:
        """How often the stream had to be opened again."""
        return self._inner.reconnects

    @property
    def interrupted(self) -> bool:
        """Whether the connection is lost at this moment; it is sought again by itself."""
        return self._inner.interrupted

    @property
    def address(self) -> str | None:
        """The peer that serves the stream."""
        return self._inner.address

    def __enter__(self) -> Self:
        self.open()
        return self

    def __iter__(self) -> Iterator[alert_pb2.AlertEvent]:
        while (event := self._portal.run(anext_or_none(self._inner))) is not None:
            yield event


async def anext_or_none(listener: AlertListener) -> alert_pb2.AlertEvent | None:
    """The next event; None where the listener is closed."""
    return await anext(listener, None)


class BlockingWatch(Items[Change]):
    """See `StateWatch`."""

    def __init__(self, portal: Portal, inner: StateWatch[Any, Change]) -> None:
        """Made by `client.tasks.watch(...)` and `client.sessions.watch(...)`."""
        super().__init__(portal, inner)
        self._watch = inner

    def next(self, timeout: float | None = None) -> Change | None:
        """The next message; None where none came within `timeout` seconds."""
        return self._portal.run(self._watch.next(timeout))

    @property
    def through_index(self) -> int:
        """Everything up to this entry of the log was handed out; 0 before COMPLETE."""
        return self._watch.through_index

    @property
    def reconnects(self) -> int:
        """How often the stream had to be opened again."""
        return self._watch.reconnects

    @property
    def interrupted(self) -> bool:
        """Whether the connection is lost at this moment; it is sought again by itself."""
        return self._watch.interrupted

    @property
    def address(self) -> str | None:
        """The peer that serves the stream."""
        return self._watch.address


def watching(
    method: Callable[Concatenate[Any, P], StateWatch[Any, Change]],
) -> Callable[Concatenate[Facade[Any], P], BlockingWatch[Change]]:
    """The same watch, as an iterator that waits for each message; close it."""
    return wrapped(method, BlockingWatch[Change])


class BlockingLock(Facade[HeldLock]):
    """See `HeldLock`; `lost` is a plain bool."""

    check = plain(HeldLock.check)

    @property
    def name(self) -> str:
        """The lock."""
        return self._inner.name

    @property
    def owner(self) -> str:
        """Who holds it, for people."""
        return self._inner.owner

    @property
    def lock(self) -> lock_pb2.Lock:
        """The lock as acquired or renewed last; an error before it is held."""
        return self._inner.lock

    @property
    def token(self) -> int:
        """The fencing token: pass it to what the lock protects."""
        return self._inner.token

    @property
    def lost(self) -> bool:
        """Whether it is known that the lock was lost, or may have been."""
        return self._inner.lost.is_set()

    @property
    def last_error(self) -> GaiaError | None:
        """The latest error of a renewal or of the release."""
        return self._inner.last_error

    @property
    def lease_left(self) -> float:
        """Seconds for which the lock is held for sure, if this process is not paused meanwhile."""
        return self._portal.call(lambda: self._inner.lease_left)

    def __enter__(self) -> Self:
        self._portal.run(self._inner.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._portal.run(self._inner.__aexit__(kind, error, trace))
