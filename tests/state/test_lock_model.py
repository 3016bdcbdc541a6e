"""Locks against a plain model, over random histories, with snapshots and restarts in between."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gaia_grpc.state.machine import StateMachine
from gaia_grpc.state.snapshot_codec import SnapshotEncoder
from tests.state.harness import START_MS
from tests.state.lock_log import NAMES, OWNERS, Locks
from tests.state.snapshot_checks import check_equal, rest_of, restored, timers, whole

PICK = st.integers(0, 10**6)
LEASES = st.sampled_from([1_000, 6_000, 25_000])


@dataclass
class PlainWait:
    waiter_id: int
    name: str
    holder: str
    lease_ms: int
    until_ms: int


@dataclass
class PlainHold:
    holder: str
    token: int
    until_ms: int
    granted_to: int = 0


@dataclass
class PlainLocks:
    """As one would write it down: a holder a name, and one list of those who wait."""

    now_ms: int
    token: int = 0
    last_wait: int = 0
    holds: dict[str, PlainHold] = field(default_factory=dict)
    waits: list[PlainWait] = field(default_factory=list)

    def hold(self, name: str, holder: str, lease_ms: int, granted_to: int = 0) -> None:
        self.token += 1
        self.holds[name] = PlainHold(holder, self.token, self.now_ms + lease_ms, granted_to)

    def end(self, name: str) -> None:
        del self.holds[name]
        first = next((wait for wait in self.waits if wait.name == name), None)
        if first is not None:
            self.waits.remove(first)
            self.hold(name, first.holder, first.lease_ms, first.waiter_id)

    def advance(self, milliseconds: int) -> None:
        end_ms = self.now_ms + milliseconds
        while True:
            due: list[tuple[int, int, str, PlainWait | None]] = [
                (hold.until_ms, 0, name, None) for name, hold in self.holds.items()
            ]
            due += [(wait.until_ms, 1, f"{wait.waiter_id:09d}", wait) for wait in self.waits]
            due = sorted(item for item in due if item[0] <= end_ms)
            if not due:
                break
            at_ms, _, name, wait = due[0]
            self.now_ms = max(self.now_ms, at_ms)
            if wait is None:
                self.end(name)
            else:
                self.waits.remove(wait)
        self.now_ms = end_ms


class LockComparison(RuleBasedStateMachine):
    """Every rule does the same to both and compares what came of it."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Locks()
        self.plain = PlainLocks(START_MS)
        self.tokens: list[tuple[str, str, int]] = []
        """Every (name, holder, token) that was ever granted."""
        self.encoder: SnapshotEncoder | None = None
        self.expected = self.taken = b""

    @rule(
        name=st.sampled_from(NAMES),
        holder=st.sampled_from(OWNERS),
        lease_ms=LEASES,
        wait_ms=st.sampled_from([0, 3_000, 40_000, 40_000]),
    )
    def acquire(self, name: str, holder: str, lease_ms: int, wait_ms: int) -> None:
        result = self.log.acquire(name, holder, lease_ms=lease_ms, wait_ms=wait_ms)
        free = name not in self.plain.holds
        assert result.acquired == free
        if free:
            self.plain.hold(name, holder, lease_ms)
        elif wait_ms:
            self.plain.last_wait += 1
            until_ms = self.plain.now_ms + wait_ms
            wait = PlainWait(self.plain.last_wait, name, holder, lease_ms, until_ms)
            self.plain.waits.append(wait)
        assert result.waiter_id == (self.plain.last_wait if not free and wait_ms else 0)

    @precondition(lambda self: self.tokens)
    @rule(pick=PICK, release=st.booleans(), lease_ms=LEASES, recent=st.booleans())
    def use_a_token(self, pick: int, release: bool, lease_ms: int, recent: bool) -> None:
        seen = self.tokens[-3:] if recent else self.tokens
        name, holder, token = seen[pick % len(seen)]
        body = {"name": name, "holder": holder, "fencing_token": token}
        hold = self.plain.holds.get(name)
        if release:
            refusal = self.log.apply_fields(release_lock=body).refusal
        else:
            refusal = self.log.apply_fields(renew_lock={**body, "lease_ms": lease_ms}).refusal
        assert refusal.reason == ("" if hold and hold.token == token else "STALE_LOCK")
        if refusal.reason or hold is None:
            return
        if release:
            self.plain.end(name)
        else:
            hold.until_ms = self.plain.now_ms + lease_ms

    @precondition(lambda self: self.plain.last_wait)
    @rule(pick=PICK)
    def cancel_wait(self, pick: int) -> None:
        waiter_id = pick % self.plain.last_wait + 1
        self.log.do(cancel_lock_wait={"waiter_id": waiter_id})
        self.plain.waits = [each for each in self.plain.waits if each.waiter_id != waiter_id]
        for name, hold in list(self.plain.holds.items()):
            if hold.granted_to == waiter_id:
                self.plain.end(name)

    @rule(milliseconds=st.sampled_from([1, 900, 3_000, 6_000, 26_000]))
    def advance(self, milliseconds: int) -> None:
        self.log.advance(milliseconds)
        self.plain.advance(milliseconds)

    # --- snapshots

    @rule()
    def begin_snapshot(self) -> None:
        if self.encoder is None:
            self.expected, self.taken = whole(self.log.machine), b""
            self.encoder = self.log.machine.begin_snapshot()

    @rule(records=st.integers(1, 4))
    def take_records(self, records: int) -> None:
        if self.encoder is not None:
            self.taken += self.encoder.take(records)

    @rule()
    def restart(self) -> None:
        # What was under way ends with the peer; its bytes must be right all the same.
        self.finish_snapshot()
        before = self.log.machine
        self.log.machine = restored(whole(before))
        check_equal(before, self.log.machine)

    def finish_snapshot(self) -> None:
        if self.encoder is not None:
            self.taken += rest_of(self.encoder)
            assert self.taken == self.expected
            self.encoder = None

    # --- comparison

    @invariant()
    def holders_agree(self) -> None:
        found = {
            lock.name: (
                lock.holder,
                lock.fencing_token,
                lock.lease_expire_time.ToMilliseconds(),
                lock.waiting,
            )
            for lock in self.log.ask(list_locks={}).list_locks.locks
        }
        assert found == {
            name: (
                hold.holder,
                hold.token,
                hold.until_ms,
                sum(wait.name == name for wait in self.plain.waits),
            )
            for name, hold in self.plain.holds.items()
        }
        for name in sorted(found):
            holding = (name, found[name][0], found[name][1])
            if holding not in self.tokens:
                assert all(token < holding[2] for other, _, token in self.tokens if other == name)
                self.tokens.append(holding)

    @invariant()
    def waits_agree(self) -> None:
        waiting = {wait.waiter_id for wait in self.plain.waits}
        granted = {hold.granted_to for hold in self.plain.holds.values()}
        for waiter_id in range(1, self.plain.last_wait + 1):
            found = self.log.lock_waited(waiter_id)
            assert found.waiting == (waiter_id in waiting)
            assert found.acquired == (waiter_id in granted)

    def teardown(self) -> None:
        self.finish_snapshot()
        twin = StateMachine()
        for index, (kind, data) in enumerate(self.log.entries, start=1):
            twin.apply(index, kind, data)
        assert twin.state_hash() == self.log.machine.state_hash()
        assert whole(twin) == whole(self.log.machine)
        live = [timer[1:] for timer in timers(twin)]
        assert len(live) == len(set(live))


LockComparison.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestLockComparison = LockComparison.TestCase
